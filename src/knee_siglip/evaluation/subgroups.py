"""Every headline metric in every subgroup: whom does the model serve worse?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.evaluation.headline import grades_and_predicted, headlines_of
from knee_siglip.metrics.bootstrap import RESAMPLES, Interval, Statistic, percentile_interval, resample, value_of
from knee_siglip.metrics.significance import holm_adjusted, normal_p_value
from knee_siglip.tables.manifest import number_groups

FEWEST_ROWS = 30
"""Figures of smaller groups say little and may point at persons: they are suppressed."""

LEVEL = 0.05
UNKNOWN = "unknown"

BETWEEN_GRADES = (".balanced_accuracy", ".quadratic_weighted_kappa")
"""Ends of the metrics left out where all of a group have one grade: the kappa is 0 with a single mistake then."""


@dataclass(frozen=True)
class Subgroup:
    """The rows (n,) of a table whose `column` says `name`."""

    column: str
    name: str
    rows: np.ndarray


@dataclass(frozen=True)
class Gap:
    """A metric in a subgroup, and how far it lies below (negative) or above that of all other rows."""

    value: float
    interval: Interval | None
    difference: float | None
    p: float | None


def subgroups_table(table: pd.DataFrame, columns: Sequence[str], resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """One row for each column, group and headline metric that is defined there.

    Args:
        table: one split's rows of the predictions table.
        columns: by whose values the rows are told apart; one that the table has not is passed over.

    Returns:
        column, group, n, patients, suppressed (fewer than `FEWEST_ROWS` rows: the rest is empty), metric, value, low
        and high (95 % bootstrap of patients), difference (to all other rows), p_holm (of no difference, adjusted for
        all groups and metrics of the table), flagged: worse than the others by more than chance.
    """
    found = list(find_subgroups(table, columns))
    gaps: dict[tuple[str, str, str | None], Gap] = {
        (group.column, group.name, metric): gap
        for group in found
        if len(group.rows) >= FEWEST_ROWS
        for metric, gap in _gaps(table, group, resamples).items()
    }
    tested = [key for key, gap in gaps.items() if gap.p is not None]
    adjusted = dict(zip(tested, holm_adjusted([gaps[key].p or 0.0 for key in tested]), strict=True))
    patients = number_groups(table, "patient_id")
    rows: list[dict[str, Any]] = []
    for group in found:
        key = (group.column, group.name)
        facts = {
            "column": group.column,
            "group": group.name,
            "n": len(group.rows),
            "patients": len(np.unique(patients[group.rows])),
            "suppressed": len(group.rows) < FEWEST_ROWS,
        }
        metrics = [metric for *of_group, metric in gaps if tuple(of_group) == key] or [None]
        for metric in metrics:
            rows.append(facts | _cells(metric, gaps.get((*key, metric)), adjusted.get((*key, metric))))
    return rows


def find_subgroups(table: pd.DataFrame, columns: Sequence[str]) -> Iterator[Subgroup]:
    """In the order of the columns and of their values; rows without a value are a group too."""
    for column in dict.fromkeys(columns):
        if column not in table:
            continue
        values = table[column].astype("string").fillna("").str.strip().replace("", UNKNOWN)
        names = sorted(values.unique(), key=lambda name: (name == UNKNOWN, name))
        if names == [UNKNOWN]:
            continue
        for name in names:
            yield Subgroup(column, name, np.flatnonzero((values == name).to_numpy()))


def count_subgroups(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """subgroups.groups that are shown, and subgroups.flagged: how many of them are worse in a metric at least."""
    shown = {(row["column"], row["group"]) for row in rows if not row["suppressed"]}
    flagged = {(row["column"], row["group"]) for row in rows if row["flagged"]}
    return {"subgroups.groups": len(shown), "subgroups.flagged": len(flagged)} if rows else {}


def _gaps(table: pd.DataFrame, group: Subgroup, resamples: int) -> dict[str, Gap]:
    """Of every metric that is defined in the group."""
    others = np.setdiff1d(np.arange(len(table)), group.rows)
    statistics_of = headlines_of(table)
    inside = {name: statistic(table.iloc[group.rows]) for name, statistic in statistics_of.items()}
    outside = {name: statistic(table.iloc[others]) for name, statistic in statistics_of.items()}
    values = {name: value_of(statistic, len(group.rows)) for name, statistic in inside.items()}
    one_grade = len(np.unique(grades_and_predicted(table)[0][group.rows])) < 2
    left_out = BETWEEN_GRADES if one_grade else ()
    names = [name for name, value in values.items() if np.isfinite(value) and not name.endswith(left_out)]
    statistics = [_restricted(inside[name], group.rows) for name in names]
    statistics += [_restricted(outside[name], others) for name in names]
    drawn, drawn_outside = np.split(resample(statistics, number_groups(table, "patient_id"), resamples), 2)
    gaps = {}
    for name, mine, theirs in zip(names, drawn, drawn_outside, strict=True):
        difference = values[name] - value_of(outside[name], len(others))
        differences = (mine - theirs)[np.isfinite(mine - theirs)]
        known = np.isfinite(difference) and len(differences) > 1
        gaps[name] = Gap(
            values[name],
            percentile_interval(mine),
            difference if known else None,
            normal_p_value(difference, differences) if known else None,
        )
    return gaps


def _restricted(statistic: Statistic, rows: np.ndarray) -> Statistic:
    """A statistic of the rows (n,) alone as one that takes the weights of the whole table."""
    return lambda weights: statistic(weights[:, rows])


def _cells(metric: str | None, gap: Gap | None, p_holm: float | None) -> dict[str, Any]:
    interval = gap.interval if gap else None
    worse = gap is not None and gap.difference is not None and gap.difference < 0
    return {
        "metric": metric,
        "value": gap.value if gap else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "difference": gap.difference if gap else None,
        "p_holm": p_holm,
        "flagged": worse and p_holm is not None and p_holm < LEVEL,
    }
