"""Several trainings a side: how far the difference of two recipes may be off when seeds and patients are drawn anew.

Every run of both sides reads the same patients. So each resample draws patients, the same for all runs, and for each
side as many of its runs as it has. Drawing both without more would count the patients' chance twice, since runs also
differ because each errs on other patients; hence the drawn runs' means are shrunk until their variance is what is left
without that (Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8). Two to five runs say little
about their own spread; hence the quantiles of Student's t, with Satterthwaite's degrees of freedom (1946, Biometrics
Bulletin 2:110-114), as in studies of several readers on the same cases (Obuchowski & Rockette 1995, Communications in
Statistics 24:285-308; Hillis 2007, Statistics in Medicine 26:596-619). `benchmarks/seed_coverage.py` measures coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from knee_siglip.metrics.intervals import COVERAGE, Interval


@dataclass(frozen=True)
class Runs:
    """One metric of a side's n runs: `values` (n,) on all patients, `resampled` (n, R) on the draws of patients."""

    values: np.ndarray
    resampled: np.ndarray

    @property
    def error(self) -> float:
        """Squared standard error of the runs' mean, from their spread alone; 0 of a single run, which shows none."""
        runs = len(self.values)
        return float(self.values.var(ddof=1)) / runs if runs > 1 else 0.0

    @property
    def training_share(self) -> float:
        """The share of `error` that comes from training; the rest comes from each run's erring on other patients."""
        if not self.error:
            return 0.0
        apart = self.resampled - self.resampled.mean(axis=0)
        by_patients = apart.var(axis=1).sum() / (len(self.values) - 1) / len(self.values)
        return max(0.0, 1 - float(by_patients) / self.error)

    def drawn_means(self, rng: np.random.Generator) -> np.ndarray:
        """(R,) means over the runs of each resample of patients and runs."""
        runs, resamples = self.resampled.shape
        means: np.ndarray = self.resampled.mean(axis=0)
        if not self.training_share:
            return means
        drawn = self.values[rng.integers(runs, size=(resamples, runs))].mean(axis=1)
        widened = np.sqrt(self.training_share * runs / (runs - 1))  # drawn means vary by (n - 1) / n too little
        return means + widened * (drawn - self.values.mean())


def seed_interval(a: Runs, b: Runs, seed: int = 0) -> tuple[Interval, float]:
    """95 % interval of the mean of B minus that of A, and the two-sided p-value of "there is no difference".

    Both by Student's t with the standard deviation over the resamples. One of the sides must have several runs; all
    values are finite.
    """
    rng = np.random.default_rng([seed, 1])  # other numbers than those that drew the patients
    difference = float(b.values.mean() - a.values.mean())
    deviation = float((b.drawn_means(rng) - a.drawn_means(rng)).std(ddof=1))
    freedom = _satterthwaite(deviation, (a, b))
    if not deviation:
        return Interval(difference, difference), float(difference == 0)
    reach = deviation * float(student.ppf((1 + COVERAGE) / 2, freedom))
    p = 2 * float(student.sf(abs(difference) / deviation, freedom))
    return Interval(difference - reach, difference + reach), p


def _satterthwaite(deviation: float, sides: Sequence[Runs]) -> float:
    """Degrees of freedom of the variance; infinite where runs do not differ."""
    doubt = sum(side.error**2 / (len(side.values) - 1) for side in sides if side.error)
    return deviation**4 / doubt if doubt else float("inf")
