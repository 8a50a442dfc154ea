"""Is a probability what it says? Calibration error in bins of equal mass, Brier score, temperature scaling."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

BINS = 10
TEMPERATURES = (0.01, 100.0)
"""A model that is right on every row would have its temperature go to 0, one that knows nothing to infinity."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar confidence: their mean confidence, the share of them that is right, and how many they are."""

    confidence: float
    accuracy: float
    rows: int


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[ReliabilityBin]:
    """Bins of equal mass, the least confident rows first: their sizes differ by one at most.

    The confidence is the largest probability of a row; it is correct where that class is the label. Equal mass as in
    Nguyen & O'Connor 2015 (arXiv:1508.05154), since equal widths would leave most bins empty; with fewer rows than
    `bins` each is a bin. Rows of equal confidence share their mean correctness: their order does not matter.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) integers.
    """
    confidence = probabilities.max(axis=1)
    correct = share_among_ties(confidence, probabilities.argmax(axis=1) == labels)
    order = np.argsort(confidence, kind="stable")
    pieces = np.array_split(order, min(bins, len(order))) if len(order) else []
    return [ReliabilityBin(float(confidence[rows].mean()), float(correct[rows].mean()), len(rows)) for rows in pieces]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Sum over `reliability_bins` of (share of rows) * |accuracy - confidence|; 0 is perfect, NaN without rows."""
    if not len(labels):
        return float("nan")
    pieces = reliability_bins(probabilities, labels, bins)
    return sum(abs(piece.accuracy - piece.confidence) * piece.rows for piece in pieces) / len(labels)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over rows of the squared distance to the one-hot label, 0 (perfect) to 2; NaN without rows.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability, eq. 2.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) integers below C.
    """
    from sklearn.metrics import brier_score_loss  # takes a second to import

    if not len(labels):
        return float("nan")
    classes = range(probabilities.shape[1])
    return float(brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T, within `TEMPERATURES`, for which softmax(logits / T) has the least negative log-likelihood.

    Guo et al. 2017 (arXiv:1706.04599), section 4.2. The likelihood has a single optimum in T. NaN without rows, and
    where each row's logits are equal, so that T changes nothing.

    Args:
        logits: (N, C).
        labels: (N,) integers below C.
    """
    from scipy.optimize import minimize_scalar  # takes a third of a second to import

    if not len(labels) or not np.ptp(logits, axis=1).any():
        return float("nan")
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    fitted = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(fitted.x))


def share_among_ties(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(N,) correctness, replaced by its mean among the rows of equal confidence: what any order of them averages to."""
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    return (np.bincount(group, weights=correct.astype(np.float64)) / sizes)[group]
