"""Yes or no: thresholds chosen on val, and what they are worth on another split.

Asked are the task's positive grades (osteoarthritis: the summed probability of grade 2 and above) and each finding. A
threshold that was set by definition would call everything positive where a model knows nothing, and one that was read
off the test set would flatter it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from knee_siglip.evaluation.confidence import FITTED_ON
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.findings import finding_truth_and_scores
from knee_siglip.evaluation.headline import interval_metrics
from knee_siglip.metrics.bootstrap import mean_statistic
from knee_siglip.metrics.grading import youden_threshold

FINDINGS = "zero_shot_findings"


@dataclass(frozen=True)
class Question:
    """truth: (N,) bool, score: (N,), patients: (N,) of the rows that can be asked. name: dotted, of its metrics."""

    name: str
    truth: np.ndarray
    score: np.ndarray
    patients: np.ndarray


def questions(split: EmbeddedSplit) -> Iterator[Question]:
    """What can be asked of a split."""
    labels, asked = split.task.labels, split.task.positive
    if asked and len(split.graded):
        score = split.grade_probabilities[split.graded, asked.lowest :].sum(axis=1)
        truth, patients = split.grades >= asked.lowest, split.patients[split.graded]
        yield Question(f"{labels.metrics}.{asked.name}", truth, score, patients)
    for name, (truth, score) in finding_truth_and_scores(split).items():
        yield Question(f"{FINDINGS}.{name}", truth, score, split.patients)


def measure_operating_points(split: EmbeddedSplit, data: EmbeddedData) -> dict[str, float]:
    """<question>.{threshold,positives,accuracy,sensitivity,specificity,ppv}, the last four with intervals.

    Of each grade, which needs no threshold, <grading>.grade_<name>.{recall,specificity,ppv} with intervals. Questions:
    none for val itself, and where val has rows of one answer only or no threshold on val is better than a guess.
    """
    metrics = _each_grade(split)
    if FITTED_ON not in data.splits or split.name == FITTED_ON:
        return metrics
    thresholds = {asked.name: youden_threshold(asked.score, asked.truth) for asked in questions(data.splits[FITTED_ON])}
    for asked in questions(split):
        if (threshold := thresholds.get(asked.name)) is not None:
            found = _operating_point(asked, threshold)
            metrics |= {f"{asked.name}.{metric}": value for metric, value in found.items()}
    return metrics


def _each_grade(split: EmbeddedSplit) -> dict[str, float]:
    metrics: dict[str, float] = {}
    predicted, patients = split.predicted[split.graded], split.patients[split.graded]
    for grade in np.unique(split.grades):
        shares = _shares(split.grades == grade, predicted == grade)
        name = f"{split.task.labels.metrics}.grade_{split.task.labels.values[grade]}"
        wanted = {"recall": shares["sensitivity"], "specificity": shares["specificity"], "ppv": shares["ppv"]}
        metrics |= {f"{name}.{metric}": value for metric, value in _with_intervals(wanted, patients).items()}
    return metrics


def _operating_point(asked: Question, threshold: float) -> dict[str, float]:
    shares = _shares(asked.truth, asked.score >= threshold)
    found = _with_intervals(shares, asked.patients)
    return {"threshold": threshold, "positives": int(asked.truth.sum())} | found


def _shares(truth: np.ndarray, yes: np.ndarray) -> dict[str, np.ndarray]:
    """Name to values (N,) in 0-1, whose mean is the metric of this name; NaN for rows that take no part."""
    return {
        "accuracy": (yes == truth).astype(np.float64),
        "sensitivity": np.where(truth, yes, np.nan),
        "specificity": np.where(~truth, ~yes, np.nan),
        "ppv": np.where(yes, truth, np.nan),
    }


def _with_intervals(shares: Mapping[str, np.ndarray], patients: np.ndarray) -> dict[str, float]:
    """The means with their intervals; without those of no row."""
    metrics: dict[str, float] = {}
    for name, values in shares.items():
        if np.isfinite(values).any():
            share = mean_statistic(values)
            interval = share.interval(np.zeros(0), patients)  # Wilson's: nothing is resampled
            metrics |= {name: float(np.nanmean(values))} | interval_metrics(name, interval, share.units(patients))
    return metrics
