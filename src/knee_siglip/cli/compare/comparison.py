"""Two models, or two recipes of several trainings each, on the same test rows: is the difference more than chance?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from knee_siglip.cli.compare.seeds import Runs, seed_interval
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.evaluation.headline import headline_from_predictions, headlines_of
from knee_siglip.metrics.bootstrap import RESAMPLES, resample
from knee_siglip.metrics.intervals import Interval, percentile_interval
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
    """One metric of two sides; `difference` is B minus A, `low` and `high` are its 95 % interval.

    value_a, value_b: means over a side's runs; spread_a, spread_b: their standard deviation, None of a single run.
    p: two-sided, of no difference (`bootstrap_p_value`); p_holm: adjusted for all metrics compared beside this one.
    units: independent ones that it rests on (`Statistic.units`). Where they are fewer than `FEWEST_UNITS` there is
    neither an interval nor a p-value.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    units: int
    spread_a: float | None = None
    spread_b: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def compare(
    a: Sequence[pd.DataFrame],
    b: Sequence[pd.DataFrame],
    metrics: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Paired patient-level bootstrap of the headline metrics of two sides, from predictions tables of one split.

    Each resample draws the same patients for all tables, so that what is hard for both sides cancels out of the
    difference (paired bootstrap resampling, Koehn 2004, https://aclanthology.org/W04-3250, of patients in place of
    sentences). Where a side has several runs, its runs are drawn too (`seed_interval`).

    Args:
        a, b: predictions of each run of a side, all of the same rows, in any order.
        metrics: names among the headlines; without any, all that the tables define.

    Raises:
        UsageError: a metric is none of the headline ones.
        UserError: the rows, their patients or grades differ, or the batches do where they matter; a metric that is
            named is undefined for these rows; or two runs of a side are the same model.
    """
    known = headlines_of(a[0])
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(f"{unknown[0]} is no headline metric; there are {', '.join(known)}")
    names = list(dict.fromkeys(metrics)) or list(known)
    tables = match_rows(_run_names(a, b), [*a, *b], batches_matter=IN_BATCHES in names)
    measured = _measure(tables, len(a), names, resamples, seed)
    if undefined := [name for name in metrics if name not in measured]:
        raise UserError(f"{undefined[0]} is undefined for these {len(tables[0])} rows; leave it out")
    patients = independent_units(tables[0]).numbers
    return _adjusted(
        [_judged(name, *sides, known[name](tables[0]).units(patients), seed) for name, sides in measured.items()]
    )


def _run_names(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> list[str]:
    """A and B, numbered where a side has several runs."""
    sides = (("A", len(a)), ("B", len(b)))
    return [f"{name}{number + 1}" if runs > 1 else name for name, runs in sides for number in range(runs)]


def _measure(
    tables: Sequence[pd.DataFrame], runs_a: int, names: Sequence[str], resamples: int, seed: int
) -> dict[str, tuple[Runs, Runs]]:
    """Both sides of each metric, over the resamples that define it in all tables; undefined metrics are left out."""
    known = headlines_of(tables[0])
    values = [headline_from_predictions(table, names) for table in tables]
    statistics = [known[name](table) for name in names for table in tables]
    drawn = resample(statistics, independent_units(tables[0]).numbers, resamples, seed)
    measured = {}
    for name, rows in zip(names, drawn.reshape(len(names), len(tables), -1), strict=True):
        defined = rows[:, np.isfinite(rows).all(axis=0)]
        if defined.shape[1] and all(name in found for found in values):
            found = np.array([each[name] for each in values])
            measured[name] = Runs(found[:runs_a], defined[:runs_a]), Runs(found[runs_a:], defined[runs_a:])
    return measured


def _judged(name: str, a: Runs, b: Runs, units: int, seed: int) -> Comparison:
    """One metric, with an interval and p where the units are enough."""
    value_a, value_b = float(a.values.mean()), float(b.values.mean())
    spread_a, spread_b = _spread(a.values), _spread(b.values)
    row = Comparison(name, value_a, value_b, value_b - value_a, units, spread_a, spread_b)
    if units < FEWEST_UNITS:
        return row
    interval, p = _certainty(a, b, seed)
    return replace(row, low=interval.low, high=interval.high, p=p)


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _certainty(a: Runs, b: Runs, seed: int) -> tuple[Interval, float]:
    if len(a.values) > 1 or len(b.values) > 1:
        return seed_interval(a, b, seed)
    differences = b.resampled[0] - a.resampled[0]
    interval = percentile_interval(differences)
    assert interval is not None  # `_measure` leaves no undefined resample
    return interval, bootstrap_p_value(differences)


def _adjusted(rows: Sequence[Comparison]) -> list[Comparison]:
    """The same with `p_holm`, over the metrics that have a p."""
    adjusted = iter(holm_adjusted([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_holm=next(adjusted)) for row in rows]


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


def match_rows(names: Sequence[str], tables: Sequence[pd.DataFrame], batches_matter: bool) -> list[pd.DataFrame]:
    """All tables in one order, that of image_id and text.

    Raises:
        UserError: one has rows that the first lacks, or says something else of a row; or two runs of a side predict
            the same of everything, so that they are one training.
    """
    tables = [table.sort_values(KEY, kind="stable", ignore_index=True) for table in tables]
    for name, table in zip(names[1:], tables[1:], strict=True):
        _require_pair(tables[0], table, (names[0], name))
        if batches_matter:
            why = f"{IN_BATCHES} needs the same evaluate.batch_size: "
            _require_same(tables[0], table, (names[0], name), "contrastive_batch", why)
    for (name, run), (other_name, other) in combinations(zip(names, tables, strict=True), 2):
        if name[0] == other_name[0] and run.equals(other):
            raise UserError(
                f"{name} and {other_name} are the same model: all of their predictions are equal. Runs of one side "
                "must differ in their seed (dvc exp run --queue -S seed=0,1,2)"
            )
    return tables


def _require_pair(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> None:
    surplus = {names[0]: _surplus(a, b), names[1]: _surplus(b, a)}
    if described := [f"{len(rows)} only in {name} ({_named(rows)})" for name, rows in surplus.items() if rows]:
        raise UserError(
            f"{names[0]} has {len(a)} rows, {names[1]} has {len(b)}, and they are not the same images with the same "
            f"texts: {'; '.join(described)}. Only models evaluated on the same rows can be compared"
        )
    labels_a, labels_b = Labels.of_predictions(a.columns), Labels.of_predictions(b.columns)
    if labels_a != labels_b:
        tasks = f"{names[0]} predicts {_task_name(labels_a)}, {names[1]} {_task_name(labels_b)}"
        raise UserError(f"{tasks}; not the same task")
    for column in (*TRUTHS, labels_a.column):
        _require_same(a, b, names, column)


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


def _require_same(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], column: str, why: str = "") -> None:
    differs = _cells(a, column) != _cells(b, column)
    if differs.any():
        raise UserError(
            f"{why}{column} differs between {names[0]} and {names[1]} in {int(differs.sum())} of {len(a)} rows "
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
