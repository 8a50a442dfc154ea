"""Patient-level bootstrap: intervals that know that the two knees of one patient are not independent.

Patients (or what stands for them: `independent_units`) are drawn with replacement, with all of their rows, so that a
resample is a weight for each row: how often its patient was drawn. A `Statistic` turns the weights of many resamples
into its values; `resample` gives several of them the same draws, so that metrics, subgroups and differences of two
models come from the same imagined test sets.
Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (hierarchical data) and 5.3
(percentiles). Intervals of shares are Wilson's instead, and where an interval reaches the edge of the scale it is
widened: `intervals`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee_siglip.metrics.grading import kappa_from_confusion, weighted_macro_auroc
from knee_siglip.metrics.intervals import (
    Interval,
    clustered_interval,
    percentile_interval,
    widened_at_the_edge,
    wilson_interval,
)
from knee_siglip.metrics.units import FEWEST_UNITS

RESAMPLES = 2000
CELLS_AT_ONCE = 2_000_000
"""Resamples times rows held in memory."""


IntervalOf = Callable[[np.ndarray, np.ndarray], Interval | None]
"""Resampled values (R,) and the independent units (N,) of the rows to the interval."""


def _percentiles(values: np.ndarray, _: np.ndarray) -> Interval | None:
    return percentile_interval(values)


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of the weights of its N rows.

    value: (R, N) weights to (R,) values; NaN where a resample leaves it undefined. classes: (N,) which of the classes
    that the metric tells apart a row is of, all one class for a mean; negative where the row takes no part. queries:
    (N,) integers, equal for rows that ask the same, such as those of one text; None where each asks for itself.
    """

    value: Callable[[np.ndarray], np.ndarray]
    classes: np.ndarray
    interval_of: IntervalOf = _percentiles
    queries: np.ndarray | None = None

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(R, N) weights to (R,) values."""
        return self.value(weights)

    def independent(self, patients: np.ndarray) -> np.ndarray:
        """(N,) what is drawn anew: the patients of the rows, or the queries where these are the larger groups.

        The size of a group is that of the one which the average row is in (Kish 1965, Survey Sampling, section 5.4).
        """
        if self.queries is None or _group_size(patients) >= _group_size(self.queries):
            return patients
        return self.queries

    def units(self, patients: np.ndarray) -> int:
        """How many independent units, of the rows' patients (N,), it rests on: of its second largest class, if several.

        A macro AUROC over grades needs two that are well known; a rare third one then counts as far as a resample
        holds it.
        """
        known = self.classes >= 0
        pairs = np.unique(np.stack([self.classes[known], self.independent(patients)[known]]), axis=1)
        counts = np.sort(np.unique(pairs[0], return_counts=True)[1])[::-1]
        return int(counts[min(1, len(counts) - 1)]) if len(counts) else 0

    def has_enough(self, patients: np.ndarray) -> bool:
        """Whether an interval over these patients, (N,) of the rows, means anything."""
        return self.units(patients) >= FEWEST_UNITS

    def interval(self, values: np.ndarray, patients: np.ndarray) -> Interval | None:
        """From resampled values (R,) and the patients of the rows (N,); None where they are too few."""
        return self.interval_of(values, self.independent(patients)) if self.has_enough(patients) else None


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
    values = np.zeros((len(statistics), resamples))
    places_of: dict[bytes, list[int]] = {}
    for place, statistic in enumerate(statistics):
        places_of.setdefault(statistic.independent(patients).tobytes(), []).append(place)
    for places in places_of.values():
        chosen = [statistics[place] for place in places]
        values[places] = _resample_units(chosen, chosen[0].independent(patients), resamples, seed)
    return values


def _resample_units(statistics: Sequence[Statistic], units: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """As `resample`, of statistics over the same units (N,)."""
    distinct, units = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // len(units))
    pieces = []
    for start in range(0, resamples, at_once):
        draws = patient_draws(len(distinct), min(at_once, resamples - start), rng)
        weights = draws[:, units].astype(np.float64)
        pieces.append(np.stack([statistic(weights) for statistic in statistics]))
    return np.concatenate(pieces, axis=1)


def value_of(statistic: Statistic, rows: int) -> float:
    """Its value where each of N rows counts once. NaN where it is undefined."""
    return float(statistic(np.ones((1, rows)))[0]) if rows else float("nan")


def mean_statistic(values: np.ndarray, queries: np.ndarray | None = None) -> Statistic:
    """Mean of per-row values (N,); rows whose value is NaN take no part. queries: as in `Statistic`.

    Of values in 0-1 the interval is Wilson's.
    """
    rows = np.flatnonzero(np.isfinite(values))
    known = values[rows].astype(np.float64)
    return Statistic(
        lambda weights: _share(weights[:, rows] @ known, weights[:, rows].sum(axis=1)),
        np.where(np.isfinite(values), 0, -1),
        _percentiles if ((known < 0) | (known > 1)).any() else lambda _, units: clustered_interval(known, units[rows]),
        queries,
    )


def kappa_statistic(grades: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Quadratic-weighted kappa of grades (N,) and predicted (N,), from 0; rows with a negative grade take no part."""
    confusion = _confusion_statistic(grades, predicted)

    def interval_of(values: np.ndarray, units: np.ndarray) -> Interval | None:
        """Where mistakes are too few to be resampled, as if chance had hidden patients that are graded by chance."""
        interval = percentile_interval(values)
        counts = confusion(np.ones((1, len(grades))))[0]
        hidden = wilson_interval(0.0, len(np.unique(units[grades >= 0]))).high
        if interval and (counts.sum(axis=0) > 0).sum() == 1:  # one answer for all: what a few right ones would make it
            right = np.diag(counts.sum(axis=1))
            reach = float(kappa_from_confusion((1 - hidden) * counts + hidden * right))
            return Interval(interval.low - reach, interval.high + reach)
        if interval and interval.high >= 1:
            value = float(kappa_from_confusion(counts))
            return Interval(min(interval.low, (1 - hidden) * value), interval.high)
        return interval

    return Statistic(lambda weights: kappa_from_confusion(confusion(weights)), grades, interval_of)


def balanced_accuracy_statistic(grades: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Mean recall over the grades (N,) that a resample holds; rows with a negative grade take no part."""
    confusion = _confusion_statistic(grades, predicted)

    def balanced_accuracy(weights: np.ndarray) -> np.ndarray:
        counts = confusion(weights)
        recalls = _share(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))
        present = np.isfinite(recalls)
        return _share(np.where(present, recalls, 0).sum(axis=1), present.sum(axis=1))

    # all mistakes that chance may have hidden could be of the rarest grade
    edge = _at_the_edge(balanced_accuracy, grades, lambda counts: len(counts) * counts.min())
    return Statistic(balanced_accuracy, np.minimum(grades, 0), edge)


def macro_auroc_statistic(scores: np.ndarray, grades: np.ndarray) -> Statistic:
    """Macro one-vs-rest AUROC of scores (N, C) for grades (N,); rows with a negative grade take no part."""
    rows = np.flatnonzero(grades >= 0)
    if not len(rows):
        return Statistic(lambda weights: np.full(len(weights), np.nan), grades)

    def area(weights: np.ndarray) -> np.ndarray:
        return weighted_macro_auroc(scores[rows], grades[rows], weights[:, rows])

    return Statistic(area, grades, _at_the_edge(area, grades, _worth_of_area))


def auroc_statistic(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """AUROC of scores (N,) for a binary truth (N,); rows whose truth is negative take no part."""
    return macro_auroc_statistic(np.stack([-scores, scores], axis=1), truth.astype(np.int64))  # both classes' are equal


def interval_of(statistic: Statistic, patients: np.ndarray, resamples: int = RESAMPLES) -> Interval | None:
    """Interval of one statistic, rows belonging to patients (N,); None where they are too few to define it."""
    if not statistic.has_enough(patients):
        return None
    return statistic.interval(resample([statistic], patients, resamples)[0], patients)


def _at_the_edge(
    value: Callable[[np.ndarray], np.ndarray], grades: np.ndarray, worth: Callable[[np.ndarray], float]
) -> IntervalOf:
    """Percentiles, widened at the edge to Wilson's for `worth` images, of how many units (C,) each grade has."""

    def interval_of(values: np.ndarray, units: np.ndarray) -> Interval | None:
        interval = percentile_interval(values)
        if interval is None:
            return None
        known = grades >= 0
        pairs = np.unique(np.stack([grades[known], units[known]]), axis=1)
        counts = np.unique(pairs[0], return_counts=True)[1]
        return widened_at_the_edge(interval, float(value(np.ones((1, len(grades))))[0]), worth(counts))

    return interval_of


def _worth_of_area(counts: np.ndarray) -> float:
    """Of an AUROC near 1 of m and n units of each class: 4 m n / (m + n).

    The limit of the variance by Hanley & McNeil 1982 (doi:10.1148/radiology.143.1.7063747), of which Newcombe 2006
    (doi:10.1002/sim.2324) makes an interval like Wilson's. Of C classes the rarest counts, and an image that is
    misjudged is so for two of them.
    """
    others = counts.sum() - counts
    return float(len(counts) / 2 * (4 * counts * others / counts.sum()).min())


def _group_size(groups: np.ndarray) -> float:
    """How many rows the group of the average row (N,) has."""
    sizes = np.unique(groups, return_counts=True)[1]
    return float((sizes**2).sum() / sizes.sum()) if len(sizes) else 0.0


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
