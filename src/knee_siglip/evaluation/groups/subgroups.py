"""Every headline metric in every subgroup: whom does the model serve worse?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from knee_siglip.evaluation.headline import grades_and_predicted, headlines_of
from knee_siglip.metrics.bootstrap import RESAMPLES, Statistic, resample, value_of
from knee_siglip.metrics.significance import holm_adjusted, normal_p_value
from knee_siglip.tables.ids import independent_units

FEWEST_ROWS = 30
"""Metrics of smaller groups say little and may point at persons: they are suppressed."""

LEVEL = 0.05
POWER = 0.8
"""Of a test, to find what is there."""

UNKNOWN = "unknown"

BETWEEN_GRADES = ".balanced_accuracy"
"""End of the metric left out where all of a group have one grade: it is the accuracy then."""

MEASURED = ("metric", "value", "low", "high", "difference", "p_holm", "detectable")
"""Columns that are empty for a suppressed group."""


@dataclass(frozen=True)
class Subgroup:
    """The rows (n,) of a table whose `column` says `name`."""

    column: str
    name: str
    rows: np.ndarray


def subgroups_table(table: pd.DataFrame, columns: Sequence[str], resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """One row for each column, group and headline metric that is defined there.

    Args:
        table: one split's rows of the predictions table.
        columns: by whose values the rows are told apart; one that the table has not is passed over.

    Returns:
        column, group, n, patients, suppressed (fewer than `FEWEST_ROWS` rows: the rest is empty), metric, value, low
        and high (95 % bootstrap of patients), difference (to all other rows), p_holm (of no difference, adjusted for
        all groups and metrics of the table), detectable (the difference that would have been found with a power of
        80 %), flagged: worse than the others by more than chance.
    """
    patients = independent_units(table).numbers
    rows: list[dict[str, Any]] = []
    for group in find_subgroups(table, columns):
        suppressed = len(group.rows) < FEWEST_ROWS
        facts = {
            "column": group.column,
            "group": group.name,
            "n": len(group.rows),
            "patients": len(np.unique(patients[group.rows])),
            "suppressed": suppressed,
        }
        measured = [] if suppressed else _measure(table, group, patients, resamples)
        rows += [facts | cells for cells in measured or [dict.fromkeys(MEASURED)]]
    tested = [row for row in rows if row["p_holm"] is not None]
    for row, p in zip(tested, holm_adjusted([row["p_holm"] for row in tested]), strict=True):
        row["p_holm"] = p
        row["detectable"] *= ndtri(POWER) - ndtri(LEVEL / 2 / len(tested))
    for row in rows:
        row["flagged"] = row["p_holm"] is not None and row["difference"] < 0 and row["p_holm"] < LEVEL
    return rows


def find_subgroups(table: pd.DataFrame, columns: Sequence[str]) -> Iterator[Subgroup]:
    """In the order of the columns and of their values; rows without a value are a group too, all rows are none."""
    for column in dict.fromkeys(columns):
        if column not in table:
            continue
        values = table[column].astype("string").fillna("").str.strip().replace("", UNKNOWN)
        names = sorted(values.unique(), key=lambda name: (name == UNKNOWN, name))
        if len(names) < 2:  # all rows: there is nothing to compare them with
            continue
        for name in names:
            yield Subgroup(column, name, np.flatnonzero((values == name).to_numpy()))


def count_subgroups(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """subgroups.groups that are shown, and subgroups.flagged: how many of them are worse in a metric at least."""
    shown = {(row["column"], row["group"]) for row in rows if not row["suppressed"]}
    flagged = {(row["column"], row["group"]) for row in rows if row["flagged"]}
    return {"subgroups.groups": len(shown), "subgroups.flagged": len(flagged)} if rows else {}


def _measure(table: pd.DataFrame, group: Subgroup, patients: np.ndarray, resamples: int) -> list[dict[str, Any]]:
    """Cells of every metric that is defined in the group; `p_holm` is not adjusted yet, `detectable` a deviation."""
    others = np.setdiff1d(np.arange(len(table)), group.rows)
    statistics_of = headlines_of(table)
    inside = {name: statistic(table.iloc[group.rows]) for name, statistic in statistics_of.items()}
    outside = {name: statistic(table.iloc[others]) for name, statistic in statistics_of.items()}
    values = {name: value_of(statistic, len(group.rows)) for name, statistic in inside.items()}
    one_grade = len(np.unique(grades_and_predicted(table)[0][group.rows])) < 2
    names = [
        name
        for name, value in values.items()
        if np.isfinite(value) and not (one_grade and name.endswith(BETWEEN_GRADES))
    ]
    queries = {name: statistic(table).queries for name, statistic in statistics_of.items()}
    statistics = [_restricted(inside[name], group.rows, queries[name]) for name in names]
    statistics += [_restricted(outside[name], others, queries[name]) for name in names]
    drawn, drawn_outside = np.split(resample(statistics, patients, resamples), 2)
    cells = []
    for name, mine, theirs in zip(names, drawn, drawn_outside, strict=True):
        difference = values[name] - value_of(outside[name], len(others))
        differences = (mine - theirs)[np.isfinite(mine - theirs)]
        enough = inside[name].has_enough(patients[group.rows])
        known = (
            enough and outside[name].has_enough(patients[others]) and np.isfinite(difference) and len(differences) > 1
        )
        gap: tuple[float | None, ...] = (None, None, None)
        if known:
            gap = (difference, normal_p_value(difference, differences), float(differences.std(ddof=1)))
        interval = inside[name].interval(mine, patients[group.rows])
        bounds = (interval.low, interval.high) if interval else (None, None)
        cells.append(dict(zip(MEASURED, (name, values[name], *bounds, *gap), strict=True)))
    return cells


def _restricted(statistic: Statistic, rows: np.ndarray, queries: np.ndarray | None) -> Statistic:
    """A statistic of the rows (n,) alone as one that takes the weights of the whole table, whose queries these are."""
    return Statistic(lambda weights: statistic(weights[:, rows]), statistic.classes, queries=queries)
