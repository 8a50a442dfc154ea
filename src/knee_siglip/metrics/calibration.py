"""Is a probability what it says? Expected calibration error in bins of equal mass."""

import numpy as np

BINS = 10


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits to probabilities that sum to 1 in each row."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Sum over bins of (share of rows) * |mean correctness - mean confidence|; 0 is perfect, NaN without rows.

    The confidence is the largest probability of a row; it is correct where that class is the label. Rows are sorted by
    confidence and cut into `bins` bins whose sizes differ by one at most (one bin per row if there are fewer rows), as
    in Nguyen & O'Connor 2015 (arXiv:1508.05154): equal-width bins would leave most of them empty. Rows of equal
    confidence share their mean correctness, so that the order of the rows does not matter.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) integers.
    """
    if not len(labels):
        return float("nan")
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    correct = (np.bincount(group, weights=correct) / sizes)[group]
    order = np.argsort(confidence, kind="stable")
    pieces = np.array_split(order, min(bins, len(order)))
    return float(sum(abs(correct[rows].mean() - confidence[rows].mean()) * len(rows) for rows in pieces) / len(order))
