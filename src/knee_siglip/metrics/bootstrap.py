"""Patient-level bootstrap: intervals that know that the two knees of one patient are not independent.

Patients (or what stands for them: `independent_units`) are drawn with replacement, with all of their rows, so that a
resample is a weight for each row: how often its patient was drawn. A `Statistic` turns the weights of many resamples
into its values; `resample` gives several of them the same draws, so that metrics, subgroups and differences of two
models come from the same imagined test sets.
Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (hierarchical data) and 5.3
(percentiles).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee_siglip.metrics.grading import kappa_from_confusion, weighted_macro_auroc
from knee_siglip.metrics.units import FEWEST_UNITS

RESAMPLES = 2000
COVERAGE = 0.95
CELLS_AT_ONCE = 2_000_000
"""Resamples times rows held in memory."""


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of the weights of its N rows.

    value: (R, N) weights to (R,) values; NaN where a resample leaves it undefined. classes: (N,) which of the classes
    that the metric tells apart a row is of, all one class for a mean; negative where the row takes no part.
    """

    value: Callable[[np.ndarray], np.ndarray]
    classes: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(R, N) weights to (R,) values."""
        return self.value(weights)

    def units(self, patients: np.ndarray) -> int:
        """How many of the patients, (N,) of the rows, it rests on: of its second largest class, if it has several.

        A macro AUROC over grades needs two that are well known; a rare third one then counts as far as a resample
        holds it.
        """
        known = self.classes >= 0
        pairs = np.unique(np.stack([self.classes[known], patients[known]]), axis=1)
        counts = np.sort(np.unique(pairs[0], return_counts=True)[1])[::-1]
        return int(counts[min(1, len(counts) - 1)]) if len(counts) else 0

    def has_enough(self, patients: np.ndarray) -> bool:
        """Whether an interval over these patients, (N,) of the rows, means anything."""
        return self.units(patients) >= FEWEST_UNITS


@dataclass(frozen=True)
class Interval:
    """95 % percentile interval."""

    low: float
    high: float


def patient_draws(patients: int, resamples: int = RESAMPLES, seed: int | np.random.Generator = 0) -> np.ndarray:
    """(R, P) how often each resample draws each of P patients; each resample draws P of them.

    A generator in place of the seed goes on where it stands: drawing in pieces gives the same draws.
    """
    drawn = np.random.default_rng(seed).integers(patients, size=(resamples, patients))
    cells = drawn + np.arange(resamples)[:, None] * patients
    return np.bincount(cells.ravel(), minlength=resamples * patients).reshape(resamples, patients)


def resample(
    statistics: Sequence[Statistic], patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """(S, R) values of S statistics over the same draws of patients, (N,) of the rows; R = 0 where there are no rows.

    For retrieval the candidates stay as they are and the queries are resampled: a duplicated candidate would lower the
    rank of every other one.
    """
    if not len(patients):
        return np.zeros((len(statistics), 0))
    distinct, patients = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // len(patients))
    pieces = []
    for start in range(0, resamples, at_once):
        draws = patient_draws(len(distinct), min(at_once, resamples - start), rng)
        weights = draws[:, patients].astype(np.float64)
        pieces.append(np.stack([statistic(weights) for statistic in statistics]))
    return np.concatenate(pieces, axis=1)


def percentile_interval(values: np.ndarray) -> Interval | None:
    """The interval that holds the middle 95 % of resampled values (R,); None where none of them is defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high))


def value_of(statistic: Statistic, rows: int) -> float:
    """Its value where each of N rows counts once. NaN where it is undefined."""
    return float(statistic(np.ones((1, rows)))[0]) if rows else float("nan")


def mean_statistic(values: np.ndarray) -> Statistic:
    """Mean of per-row values (N,); rows whose value is NaN take no part."""
    rows = np.flatnonzero(np.isfinite(values))
    known = values[rows].astype(np.float64)
    return Statistic(
        lambda weights: _share(weights[:, rows] @ known, weights[:, rows].sum(axis=1)),
        np.where(np.isfinite(values), 0, -1),
    )


def kappa_statistic(grades: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Quadratic-weighted kappa of grades (N,) and predicted (N,), from 0; rows with a negative grade take no part."""
    confusion = _confusion_statistic(grades, predicted)
    return Statistic(lambda weights: kappa_from_confusion(confusion(weights)), grades)


def balanced_accuracy_statistic(grades: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Mean recall over the grades (N,) that a resample holds; rows with a negative grade take no part."""
    confusion = _confusion_statistic(grades, predicted)

    def balanced_accuracy(weights: np.ndarray) -> np.ndarray:
        counts = confusion(weights)
        recalls = _share(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))
        present = np.isfinite(recalls)
        return _share(np.where(present, recalls, 0).sum(axis=1), present.sum(axis=1))

    return Statistic(balanced_accuracy, np.minimum(grades, 0))


def macro_auroc_statistic(scores: np.ndarray, grades: np.ndarray) -> Statistic:
    """Macro one-vs-rest AUROC of scores (N, C) for grades (N,); rows with a negative grade take no part."""
    rows = np.flatnonzero(grades >= 0)
    if not len(rows):
        return Statistic(lambda weights: np.full(len(weights), np.nan), grades)
    return Statistic(lambda weights: weighted_macro_auroc(scores[rows], grades[rows], weights[:, rows]), grades)


def auroc_statistic(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """AUROC of scores (N,) for a binary truth (N,); rows whose truth is negative take no part."""
    return macro_auroc_statistic(np.stack([-scores, scores], axis=1), truth.astype(np.int64))  # both classes' are equal


def interval_of(
    statistic: Statistic, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of one statistic, rows belonging to patients (N,); None where they are too few to define it."""
    if not statistic.has_enough(patients):
        return None
    return percentile_interval(resample([statistic], patients, resamples, seed)[0])


def _confusion_statistic(grades: np.ndarray, predicted: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(R, N) weights to (R, C, C) weighted counts, C as many as occur, actual grade down and predicted grade across."""
    rows = np.flatnonzero(grades >= 0)
    grades, predicted = grades[rows], predicted[rows]
    classes = int(max(grades.max(initial=0), predicted.max(initial=0))) + 1
    cells = np.eye(classes * classes)[grades * classes + predicted]
    return lambda weights: (weights[:, rows] @ cells).reshape(-1, classes, classes)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where the whole is 0."""
    return np.asarray(part / np.where(whole > 0, whole, np.nan))
