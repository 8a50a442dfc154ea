"""95 % intervals, also at the edge: where mistakes are few, or none, resamples hold fewer still.

Of 49 images that are all right, every resample is all right as well: the bootstrap says 100 to 100 %, and where the
truth is 97 % it misses it in a quarter of all test sets (benchmarks/bootstrap_coverage.py).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

COVERAGE = 0.95
Z = float(ndtri((1 + COVERAGE) / 2))


@dataclass(frozen=True)
class Interval:
    """95 % interval."""

    low: float
    high: float


def percentile_interval(values: np.ndarray) -> Interval | None:
    """The interval that holds the middle 95 % of resampled values (R,); None where none of them is defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high))


def wilson_interval(share: float, count: float) -> Interval:
    """Of a share of `count` independent images, which need not be a whole number.

    Wilson 1927, doi:10.1080/01621459.1927.10502953: the shares that a test would not reject.
    """
    centre = count * share + Z**2 / 2
    half = Z * np.sqrt(count * share * (1 - share) + Z**2 / 4)
    low, high = (centre + half * side for side in (-1, 1))
    return Interval(max(0.0, float(low / (count + Z**2))), min(1.0, float(high / (count + Z**2))))


def clustered_interval(values: np.ndarray, units: np.ndarray) -> Interval | None:
    """Wilson's for the mean of values (N,) in 0-1, of so many images as the rows of independent units (N,) are worth.

    None without rows. The worth is that of N independent rows divided by the design effect: how much more the sums of
    units vary than independent rows would (Korn & Graubard 1998, Survey Methodology 24:193-201), never below 1. One
    more unit, wrong throughout where most rows are right, is counted in, for a few mistakes cannot tell whether they
    come together.
    """
    if not len(values):
        return None
    share, (_, numbers, sizes) = float(values.mean()), np.unique(units, return_inverse=True, return_counts=True)
    residuals = values - share
    between = max(float((np.bincount(numbers, weights=residuals) ** 2).sum()), float((residuals**2).sum()))
    size = float((sizes**2).sum() / sizes.sum())
    rarer = max(share, 1 - share) ** 2
    independent = len(values) * share * (1 - share) + size * rarer
    return wilson_interval(share, len(values) * independent / (between + size**2 * rarer))


def widened_at_the_edge(interval: Interval, value: float, worth: float) -> Interval:
    """A percentile interval that reaches 1, or 0, with its other end no nearer than Wilson's for `worth` images.

    It reaches the edge where the mistakes of three patients or fewer are all that moves it.
    """
    if interval.low > 0 and interval.high < 1:
        return interval
    wilson = wilson_interval(value, worth)
    low = min(interval.low, wilson.low) if interval.high >= 1 else interval.low
    high = max(interval.high, wilson.high) if interval.low <= 0 else interval.high
    return Interval(low, high)
