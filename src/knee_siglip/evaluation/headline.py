"""The headline metrics, defined once as statistics of the predictions table: the figure itself, its interval, its
difference between two models and its values in subgroups all follow from that definition.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from knee_siglip.metrics.bootstrap import (
    RESAMPLES,
    Interval,
    Statistic,
    balanced_accuracy_statistic,
    kappa_statistic,
    macro_auroc_statistic,
    mean_statistic,
    percentile_interval,
    resample,
    value_of,
)
from knee_siglip.metrics.grading import GRADES
from knee_siglip.tables.manifest import number_groups


@dataclass(frozen=True)
class Figure:
    """A metric's value and its 95 % interval; None where no resample defines it."""

    value: float
    interval: Interval | None


def contrastive_accuracy(table: pd.DataFrame) -> Statistic:
    """Mean credit of both directions over the rows that were in a batch."""
    return mean_statistic(table[["contrastive_image_to_text", "contrastive_text_to_image"]].to_numpy().mean(axis=1))


def accuracy(table: pd.DataFrame) -> Statistic:
    """Share of the graded rows whose predicted grade is the actual one."""
    grades, predicted = grades_and_predicted(table)
    return mean_statistic(np.where(grades >= 0, grades == predicted, np.nan))


def macro_auroc(table: pd.DataFrame) -> Statistic:
    """One grade against the rest by its probability, mean over the grades that occur."""
    probabilities = table[[f"kl_probability_{grade}" for grade in range(GRADES)]].to_numpy()
    return macro_auroc_statistic(probabilities, grades_and_predicted(table)[0])


HEADLINES: dict[str, Callable[[pd.DataFrame], Statistic]] = {
    "contrastive_accuracy": contrastive_accuracy,
    "retrieval.image_to_text.recall_at_1": lambda table: mean_statistic(table["image_to_text_recall_at_1"].to_numpy()),
    "retrieval.text_to_image.recall_at_1": lambda table: mean_statistic(table["text_to_image_recall_at_1"].to_numpy()),
    "zero_shot_kl.accuracy": accuracy,
    "zero_shot_kl.balanced_accuracy": lambda table: balanced_accuracy_statistic(*grades_and_predicted(table)),
    "zero_shot_kl.quadratic_weighted_kappa": lambda table: kappa_statistic(*grades_and_predicted(table)),
    "zero_shot_kl.macro_auroc": macro_auroc,
}
"""Name in metrics.json to the statistic over the rows of a predictions table."""


def grades_and_predicted(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(N,) Kellgren-Lawrence grades 0-4, -1 where there is none, and (N,) predicted ones."""
    known = "kl_grade" in table
    grades = table["kl_grade"].fillna(-1).to_numpy(dtype=np.int64) if known else np.full(len(table), -1)
    return grades, table["kl_grade_predicted"].to_numpy()


def headline_from_predictions(table: pd.DataFrame, names: Iterable[str] = tuple(HEADLINES)) -> dict[str, float]:
    """Headline metrics of one split's rows of the predictions table, or a subgroup's; undefined ones are left out."""
    values = {name: value_of(HEADLINES[name](table), len(table)) for name in names}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def headline_figures(
    table: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0, names: Iterable[str] = tuple(HEADLINES)
) -> dict[str, Figure]:
    """As `headline_from_predictions`, with intervals from one set of draws of patients for all metrics."""
    values = headline_from_predictions(table, names)
    drawn = resample([HEADLINES[name](table) for name in values], number_groups(table, "patient_id"), resamples, seed)
    return {name: Figure(values[name], percentile_interval(row)) for name, row in zip(values, drawn, strict=True)}
