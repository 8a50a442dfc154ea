"""Could a difference between two models be chance? p-values of bootstrapped differences, and their adjustment."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of "there is no difference" from R resampled differences (R,).

    p = 2 * min(1 + #{d <= 0}, 1 + #{d >= 0}) / (1 + R), at most 1: the level at which the percentile interval just
    reaches 0, so that it agrees with the interval shown beside it (Efron & Tibshirani 1993, An Introduction to the
    Bootstrap, section 15.4). The added 1 keeps it above 0, as R resamples cannot show less than about 1 / R (Davison &
    Hinkley 1997, Bootstrap Methods and their Application, section 4.2).
    """
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, float(2 * (1 + tail) / (1 + len(differences))))


def normal_p_value(difference: float, differences: np.ndarray) -> float:
    """Two-sided p-value of "there is no difference" from its resampled values (R,), by their standard deviation.

    2 * (1 - Phi(|difference| / sd)): Davison & Hinkley 1997, section 5.2.1. Unlike `bootstrap_p_value` it may fall
    below 2 / R, as it must where many tests are adjusted for.
    """
    deviation = float(differences.std(ddof=1))
    if deviation == 0:
        return float(difference == 0)
    return float(2 * ndtr(-abs(difference) / deviation))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values that keep the chance of even one false finding among all of them below the level they are held against.

    The i-th smallest of k is multiplied by k - i + 1, never below its predecessor, at most 1: Holm 1979, A Simple
    Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6:65-70. Holds however the tests
    depend on each other, as those of one test set do.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in adjusted]
