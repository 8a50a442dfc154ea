"""Patient-level bootstrap: intervals that know that the two knees of one patient are not independent.

Patients are drawn with replacement, with all of their rows; a resample is a vector of how often each patient was drawn.
Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (hierarchical data); percentiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee_siglip.metrics.zero_shot import GRADES, kappa_from_confusion, weighted_macro_auroc

RESAMPLES = 2000
COVERAGE = 0.95
CELLS_AT_ONCE = 2_000_000
"""Resamples times patients (or rows) held in memory."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""(R, P) draws per patient to (R,) values of the figure; NaN where a resample leaves it undefined."""


@dataclass(frozen=True)
class Interval:
    """95 % percentile interval."""

    low: float
    high: float


def number_patients(patient_ids: Sequence[str | None] | None, count: int) -> np.ndarray:
    """(N,) integers 0 ... P-1, equal for rows of one patient; a row without a patient counts as one of its own."""
    if patient_ids is None:
        return np.arange(count)
    keys = [("row", str(row)) if not patient else ("patient", patient) for row, patient in enumerate(patient_ids)]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def percentile_interval(
    statistic: Statistic, patients: int, *, width: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The interval of a statistic over resampled patients; None where it is undefined in every resample.

    Args:
        statistic: vectorised over resamples.
        patients: how many there are.
        width: columns that the statistic needs per resample, if more than `patients`; bounds the memory.
    """
    if patients == 0:
        return None
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // max(patients, width or 0))
    values = np.concatenate(
        [
            statistic(rng.multinomial(patients, np.full(patients, 1 / patients), size=min(at_once, resamples - start)))
            for start in range(0, resamples, at_once)
        ]
    )
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high))


def mean_interval(
    values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of the mean of per-row values (N,), rows belonging to patients (N,).

    For retrieval the candidates stay as they are and the queries are resampled: a duplicated candidate would lower the
    rank of every other one.
    """
    _, patients = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(patients, weights=values), np.bincount(patients)
    return percentile_interval(
        lambda draws: (draws @ sums) / (draws @ counts), len(counts), resamples=resamples, seed=seed
    )


def kappa_interval(
    grades: np.ndarray, predicted: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of the quadratic-weighted kappa of grades (N,) and predicted (N,), both 0-4."""
    _, patients = np.unique(patients, return_inverse=True)
    count = int(patients.max(initial=-1)) + 1
    cells = np.zeros((count, GRADES * GRADES))
    np.add.at(cells, (patients, grades * GRADES + predicted), 1)
    return percentile_interval(
        lambda draws: kappa_from_confusion((draws @ cells).reshape(-1, GRADES, GRADES)),
        count,
        resamples=resamples,
        seed=seed,
    )


def macro_auroc_interval(
    scores: np.ndarray, grades: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of the macro one-vs-rest AUROC of scores (N, 5) for grades (N,)."""
    _, patients = np.unique(patients, return_inverse=True)
    return percentile_interval(
        lambda draws: weighted_macro_auroc(scores, grades, draws[:, patients]),
        int(patients.max(initial=-1)) + 1,
        width=len(grades),
        resamples=resamples,
        seed=seed,
    )
