"""The headline metrics, defined once as statistics of the predictions table: the value, its interval, its
difference between two models and its values in subgroups all follow from that definition.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from knee_siglip.metrics.bootstrap import (
    RESAMPLES,
    Statistic,
    balanced_accuracy_statistic,
    kappa_statistic,
    macro_auroc_statistic,
    mean_statistic,
    resample,
    value_of,
)
from knee_siglip.metrics.intervals import Interval
from knee_siglip.tables.ids import independent_units
from knee_siglip.task.task import Labels


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its 95 % interval; None where there are too few independent units for one.

    units: how many it rests on (`Statistic.units`).
    """

    value: float
    interval: Interval | None
    units: int


def contrastive_accuracy(table: pd.DataFrame) -> Statistic:
    """Mean credit of both directions over the rows that were in a batch."""
    return mean_statistic(table[["contrastive_image_to_text", "contrastive_text_to_image"]].to_numpy().mean(axis=1))


def accuracy(table: pd.DataFrame) -> Statistic:
    """Share of the graded rows whose predicted grade is the actual one."""
    grades, predicted = grades_and_predicted(table)
    return mean_statistic(np.where(grades >= 0, grades == predicted, np.nan))


def macro_auroc(table: pd.DataFrame) -> Statistic:
    """One grade against the rest by its probability, mean over the grades that occur."""
    probabilities = table[Labels.of_predictions(table.columns).probabilities].to_numpy()
    return macro_auroc_statistic(probabilities, grades_and_predicted(table)[0])


Headlines = dict[str, Callable[[pd.DataFrame], Statistic]]

MATCHING: Headlines = {
    "contrastive_accuracy": contrastive_accuracy,
    "retrieval.image_to_text.recall_at_1": lambda table: mean_statistic(table["image_to_text_recall_at_1"].to_numpy()),
    "retrieval.text_to_image.recall_at_1": lambda table: mean_statistic(
        table["text_to_image_recall_at_1"].to_numpy(), pd.factorize(table["text"])[0]
    ),
}
GRADING: Headlines = {
    "accuracy": accuracy,
    "balanced_accuracy": lambda table: balanced_accuracy_statistic(*grades_and_predicted(table)),
    "quadratic_weighted_kappa": lambda table: kappa_statistic(*grades_and_predicted(table)),
    "macro_auroc": macro_auroc,
}


def headlines(labels: Labels) -> Headlines:
    """Name in metrics.json to the statistic over the rows of a predictions table; of no grading without labels."""
    return MATCHING | {f"{labels.metrics}.{name}": statistic for name, statistic in GRADING.items() if labels}


def headlines_of(table: pd.DataFrame) -> Headlines:
    """Those of the task that a predictions table is about."""
    return headlines(Labels.of_predictions(table.columns))


def grades_and_predicted(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(N,) grades, positions in the labels, -1 where there is none, and (N,) predicted ones."""
    labels = Labels.of_predictions(table.columns)
    return _positions(table, labels, labels.column), _positions(table, labels, labels.predicted)


def _positions(table: pd.DataFrame, labels: Labels, column: str) -> np.ndarray:
    if column not in table:
        return np.full(len(table), -1)
    return np.array(labels.positions(table[column]), dtype=np.int64)


def headline_from_predictions(table: pd.DataFrame, names: Iterable[str] | None = None) -> dict[str, float]:
    """Headline metrics of one split's rows of the predictions table, or a subgroup's; undefined ones are left out."""
    known = headlines_of(table)
    values = {name: value_of(known[name](table), len(table)) for name in (known if names is None else names)}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def headline_estimates(table: pd.DataFrame, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """As `headline_from_predictions`, with intervals from one set of draws of patients for all metrics."""
    values = headline_from_predictions(table)
    known = headlines_of(table)
    statistics = {name: known[name](table) for name in values}
    patients = independent_units(table).numbers
    drawn = resample(list(statistics.values()), patients, resamples)
    estimates = {}
    for (name, statistic), row in zip(statistics.items(), drawn, strict=True):
        estimates[name] = Estimate(values[name], statistic.interval(row, patients), statistic.units(patients))
    return estimates


def interval_metrics(name: str, interval: Interval | None, units: int) -> dict[str, float]:
    """`<name>_ci_low` and `_ci_high`, or `_ci_units`: how few independent units there are for an interval."""
    if interval is None:
        return {f"{name}_ci_units": units}
    return {f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}
