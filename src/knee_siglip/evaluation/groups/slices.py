"""Where the mistakes gather: slices of the data by grade, finding and column, and by two of these, each tested."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from knee_siglip.evaluation.groups.subgroups import FEWEST_ROWS, LEVEL, POWER
from knee_siglip.evaluation.headline import grades_and_predicted
from knee_siglip.metrics.categories import category_columns
from knee_siglip.metrics.intervals import clustered_interval
from knee_siglip.metrics.significance import holm_adjusted
from knee_siglip.metrics.units import FEWEST_UNITS
from knee_siglip.tables.ids import independent_units
from knee_siglip.task.task import Labels

NO_CATEGORIES = frozenset(
    {"img_path", "image_id", "split", "patient_id", "text", "study_id", "text_id", "contrastive_batch"}
)
"""Columns of the predictions that name rows rather than kinds of them."""

WORST = 3


@dataclass(frozen=True)
class Slice:
    """filters: as the case browser takes them, name to value; rows: (N,) bool."""

    filters: dict[str, str]
    rows: np.ndarray


def slices_table(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each slice of 30 images or more, of ten patients or more, the most surely worse first.

    Mistakes are wrong grades; without grades, images for which no right text came first.

    Returns:
        filters (of the case browser, as in an address), n, patients, mistakes, risk (their share) with low and high,
        risk_outside, p_holm (of "no more mistakes than elsewhere", one-sided, adjusted for all slices), detectable (the
        share that would have been found with a power of 80 %), flagged, worst: 1 to 3 for those that are shown first,
        none of which holds another, else empty.
    """
    known, wrong = _mistakes(table)
    patients = independent_units(table).numbers[known]
    slices = [each for each in _slices(table[known].reset_index(drop=True)) if _is_large(each.rows, patients)]
    tested = [_tested(each, wrong, patients) for each in slices]
    adjusted = holm_adjusted([row["p_holm"] for row in tested]) if tested else []
    needed = ndtri(POWER) - ndtri(LEVEL / max(1, len(tested)))
    for row, p in zip(tested, adjusted, strict=True):
        row["detectable"] = min(1.0, row["risk_outside"] + needed * row.pop("error"))
        row |= {"p_holm": p, "flagged": p < LEVEL, "worst": None}
    order = sorted(range(len(tested)), key=lambda place: (-tested[place].pop("sureness"), place))
    shown: list[Slice] = []
    for place in order:
        if (
            tested[place]["flagged"]
            and len(shown) < WORST
            and not any(_nested(slices[place], other) for other in shown)
        ):
            shown.append(slices[place])
            tested[place]["worst"] = len(shown)
    return [tested[place] for place in order]


def count_slices(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """slices.tested, and slices.flagged: how many of them have more mistakes than chance explains."""
    return {"slices.tested": len(rows), "slices.flagged": sum(row["flagged"] for row in rows)} if rows else {}


def _mistakes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool which rows are judged, and (n,) bool which of these are wrong."""
    grades, predicted = grades_and_predicted(table)
    if (grades >= 0).any():
        return grades >= 0, (grades != predicted)[grades >= 0]
    return np.ones(len(table), dtype=bool), table["image_to_text_recall_at_1"].to_numpy() < 0.5


def _slices(table: pd.DataFrame) -> Iterator[Slice]:
    """Of one property, then of two different ones."""
    labels = Labels.of_predictions(table.columns)
    single = [
        Slice({"finding": name.removeprefix("finding_").removesuffix("_truth")}, table[name].to_numpy(dtype=bool))
        for name in map(str, table)
        if name.startswith("finding_") and name.endswith("_truth")
    ]
    if labels:
        grades = grades_and_predicted(table)[0]
        single += [Slice({"actual": value}, grades == place) for place, value in enumerate(labels.values)]
    others = NO_CATEGORIES | ({labels.column, labels.predicted} if labels else set())
    for column in category_columns(table, others):
        values = table[column].astype("string").fillna("").str.strip()
        single += [
            Slice({f"in.{column}": value}, (values == value).to_numpy()) for value in sorted(set(values)) if value
        ]
    yield from single
    for one, other in combinations(single, 2):
        if one.filters.keys() != other.filters.keys():
            yield Slice(one.filters | other.filters, one.rows & other.rows)


def _is_large(rows: np.ndarray, patients: np.ndarray) -> bool:
    """Whether there is enough inside and outside."""
    return all(
        chosen.sum() >= FEWEST_ROWS and len(np.unique(patients[chosen])) >= FEWEST_UNITS for chosen in (rows, ~rows)
    )


def _tested(each: Slice, wrong: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """`error`: standard error of the difference if there is none; `sureness`: the difference in these.

    The larger of two p-values: of the score test, with the sums of patients in place of rows, and of Fisher's exact
    one, which holds for few mistakes.
    """
    from scipy.stats import hypergeom  # takes longer to import than pandas

    inside, outside = wrong[each.rows], wrong[~each.rows]
    weights = np.where(each.rows, 1 / len(inside), -1 / len(outside))
    residuals = weights * (wrong - wrong.mean())
    variance = max((np.bincount(patients, weights=residuals) ** 2).sum(), (residuals**2).sum())
    error, difference = float(np.sqrt(variance)), float(inside.mean() - outside.mean())
    sureness = difference / error if error else 0.0
    exact = hypergeom.sf(inside.sum() - 1, len(wrong), wrong.sum(), len(inside))
    bounds = clustered_interval(inside.astype(np.float64), patients[each.rows])
    assert bounds is not None
    return {
        "filters": urlencode(each.filters),
        "n": len(inside),
        "patients": len(np.unique(patients[each.rows])),
        "mistakes": int(inside.sum()),
        "risk": float(inside.mean()),
        "low": bounds.low,
        "high": bounds.high,
        "risk_outside": float(outside.mean()),
        "p_holm": float(max(ndtr(-sureness), exact)),
        "error": error,
        "sureness": sureness,
    }


def _nested(one: Slice, other: Slice) -> bool:
    """Whether one slice holds the other."""
    return one.filters.items() <= other.filters.items() or other.filters.items() <= one.filters.items()
