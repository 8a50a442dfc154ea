"""Yes or no: thresholds chosen on val, and what they are worth on another split.

Asked are the task's positive grades (osteoarthritis: the summed probability of grade 2 and above) and each finding. A
threshold that was set by definition would call everything positive where a model knows nothing, and one that was read
off the test set would flatter it.
"""

from collections.abc import Iterator
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

    None for val itself, and where val has rows of one answer only or no threshold on val is better than a guess.
    """
    if FITTED_ON not in data.splits or split.name == FITTED_ON:
        return {}
    thresholds = {asked.name: youden_threshold(asked.score, asked.truth) for asked in questions(data.splits[FITTED_ON])}
    metrics: dict[str, float] = {}
    for asked in questions(split):
        if (threshold := thresholds.get(asked.name)) is not None:
            found = _operating_point(asked, threshold)
            metrics |= {f"{asked.name}.{metric}": value for metric, value in found.items()}
    return metrics


def _operating_point(asked: Question, threshold: float) -> dict[str, float]:
    yes, truth = asked.score >= threshold, asked.truth
    shares = {
        "accuracy": (yes == truth).astype(np.float64),
        "sensitivity": np.where(truth, yes, np.nan),
        "specificity": np.where(~truth, ~yes, np.nan),
        "ppv": np.where(yes, truth, np.nan),
    }
    metrics: dict[str, float] = {"threshold": threshold, "positives": int(truth.sum())}
    for name, values in shares.items():
        if np.isfinite(values).any():
            share = mean_statistic(values)
            interval = share.interval(np.zeros(0), asked.patients)  # Wilson's: nothing is resampled
            metrics |= {name: float(np.nanmean(values))} | interval_metrics(name, interval, share.units(asked.patients))
    return metrics
