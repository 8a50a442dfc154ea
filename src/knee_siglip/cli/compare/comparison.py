"""Two models on the same test rows: is the difference more than chance?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.evaluation.headline import headline_from_predictions, headlines_of
from knee_siglip.metrics.bootstrap import RESAMPLES, percentile_interval, resample
from knee_siglip.metrics.significance import bootstrap_p_value, holm_adjusted
from knee_siglip.metrics.units import FEWEST_UNITS
from knee_siglip.tables.ids import independent_units
from knee_siglip.task.task import Labels

KEY = ["image_id", "text"]
TRUTHS = ("patient_id", "study_id")
"""Beside its label, what a row is judged against and drawn by: must agree in both tables, or nothing is paired.
"""

NUMBERS = (
    "image_to_text_recall_at_1",
    "text_to_image_recall_at_1",
    "contrastive_batch",
    "contrastive_image_to_text",
    "contrastive_text_to_image",
)
ALWAYS_THERE = ("img_path", "image_id", "split", "text", *NUMBERS)
"""By these a table of predictions is known for one."""

IN_BATCHES = "contrastive_accuracy"
ROWS_NAMED = 3


@dataclass(frozen=True)
class Comparison:
    """One metric of two models; `difference` is B minus A, `low` and `high` are its 95 % interval.

    p: two-sided, of no difference (`bootstrap_p_value`); p_holm: adjusted for all metrics compared beside this one.
    units: independent ones that it rests on (`Statistic.units`). Where they are fewer than `FEWEST_UNITS` there is
    neither an interval nor a p-value.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    units: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def compare(
    a: pd.DataFrame, b: pd.DataFrame, metrics: Sequence[str] = (), resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """Paired patient-level bootstrap of the headline metrics of two predictions tables of one split.

    Each resample draws the same patients for both models, so that what is hard for both cancels out of the difference
    (paired bootstrap resampling, Koehn 2004, https://aclanthology.org/W04-3250, of patients in place of sentences).

    Args:
        a, b: predictions of the same rows, in any order.
        metrics: names among the headlines; without any, all that both tables define.

    Raises:
        UsageError: a metric is none of the headline ones.
        UserError: the rows, their patients or grades differ, or the batches do where they matter; or a metric that is
            named is undefined for these rows.
    """
    known = headlines_of(a)
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(f"{unknown[0]} is no headline metric; there are {', '.join(known)}")
    a, b = match_rows(a, b)
    names = list(dict.fromkeys(metrics)) or list(known)
    if IN_BATCHES in names:
        _require_same(a, b, "contrastive_batch", f"{IN_BATCHES} needs the same evaluate.batch_size: ")
    differences = _paired_differences(a, b, names, resamples, seed)
    if undefined := [name for name in metrics if name not in differences]:
        raise UserError(f"{undefined[0]} is undefined for these {len(a)} rows; leave it out")
    values_a, values_b = headline_from_predictions(a), headline_from_predictions(b)
    patients = independent_units(a).numbers
    units = {name: known[name](a).units(patients) for name in differences}
    tested = [name for name, count in units.items() if count >= FEWEST_UNITS]
    p_values = [bootstrap_p_value(differences[name]) for name in tested]
    adjusted = dict(zip(tested, zip(p_values, holm_adjusted(p_values), strict=True), strict=True))
    comparisons = []
    for name, values in differences.items():
        row = Comparison(name, values_a[name], values_b[name], values_b[name] - values_a[name], units[name])
        interval = percentile_interval(values)
        if name in adjusted and interval is not None:
            p, p_holm = adjusted[name]
            row = replace(row, low=interval.low, high=interval.high, p=p, p_holm=p_holm)
        comparisons.append(row)
    return comparisons


def read_predictions(source: Path | BinaryIO, name: str) -> pd.DataFrame:
    """What `predictions.write_predictions` wrote; `name` is what the user calls it.

    Raises:
        UserError: the file is no table of predictions.
    """
    try:
        table = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read as predictions: {error}") from None
    if missing := [column for column in ALWAYS_THERE if column not in table]:
        raise UserError(f"{name} holds no predictions of this project: it lacks the column {missing[0]}")
    labels = Labels.of_predictions(table.columns)
    if odd := [column for column in (*NUMBERS, *labels.probabilities) if not is_numeric_dtype(table[column])]:
        raise UserError(f"{name} holds no predictions of this project: its column {odd[0]} holds no numbers")
    if labels and -1 in labels.positions(table[labels.predicted]):
        raise UserError(f"{name} holds no predictions of this project: its column {labels.predicted} holds no labels")
    return table


def match_rows(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in one order, that of image_id and text.

    Raises:
        UserError: one has rows that the other lacks, or says something else of a row.
    """
    surplus = {"A": _surplus(a, b), "B": _surplus(b, a)}
    if described := [f"{len(rows)} only in {name} ({_named(rows)})" for name, rows in surplus.items() if rows]:
        raise UserError(
            f"A has {len(a)} rows, B has {len(b)}, and they are not the same images with the same texts: "
            f"{'; '.join(described)}. Only models evaluated on the same rows can be compared"
        )
    labels_a, labels_b = Labels.of_predictions(a.columns), Labels.of_predictions(b.columns)
    if labels_a != labels_b:
        raise UserError(f"A predicts {_task_name(labels_a)}, B {_task_name(labels_b)}; not the same task")
    a = a.sort_values(KEY, kind="stable", ignore_index=True)
    b = b.sort_values(KEY, kind="stable", ignore_index=True)
    for column in (*TRUTHS, labels_a.column):
        _require_same(a, b, column)
    return a, b


def _paired_differences(
    a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """B minus A in the resamples that define both; metrics of which there are none are left out."""
    known = headlines_of(a)
    statistics = [known[name](table) for table in (a, b) for name in names]
    drawn_a, drawn_b = np.split(resample(statistics, independent_units(a).numbers, resamples, seed), 2)
    defined = {name: row[np.isfinite(row)] for name, row in zip(names, drawn_b - drawn_a, strict=True)}
    return {name: values for name, values in defined.items() if len(values)}


def _task_name(labels: Labels) -> str:
    return f"{labels.column} ({', '.join(labels.values)})" if labels else "no grades"


def _surplus(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """img_path of the rows of a that b has not, counting how often a row occurs."""
    left = Counter(b[KEY].itertuples(index=False, name=None))
    surplus = []
    for img_path, *key in a[["img_path", *KEY]].itertuples(index=False, name=None):
        if left[tuple(key)]:
            left[tuple(key)] -= 1
        else:
            surplus.append(str(img_path))
    return surplus


def _require_same(a: pd.DataFrame, b: pd.DataFrame, column: str, why: str = "") -> None:
    differs = _cells(a, column) != _cells(b, column)
    if differs.any():
        raise UserError(
            f"{why}{column} differs between A and B in {int(differs.sum())} of {len(a)} rows "
            f"({_named(a.loc[differs, 'img_path'].tolist())})"
        )


def _cells(table: pd.DataFrame, column: str) -> pd.Series:
    """The column with '' for what is unknown, as all of it is where there is no such column."""
    if column not in table:
        return pd.Series("", index=table.index, dtype=object)
    return table[column].astype(object).where(table[column].notna(), "")


def _named(img_paths: Sequence[str]) -> str:
    shown = ", ".join(img_paths[:ROWS_NAMED])
    return shown if len(img_paths) <= ROWS_NAMED else f"{shown} ..."
