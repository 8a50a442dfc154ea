"""Cosine scores in which equal means equal."""

import numpy as np

SCORE_DECIMALS = 6
"""Finer differences of a cosine are float32 rounding noise: without this, a collapsed model is ranked by that noise."""


def cosine_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2-normalised (Q, D) and (C, D) to cosines (Q, C), float64, rounded to `SCORE_DECIMALS`."""
    assert queries.shape[1] == candidates.shape[1], (queries.shape, candidates.shape)
    return np.round(queries.astype(np.float64) @ candidates.astype(np.float64).T, SCORE_DECIMALS)


def score_levels(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2-normalised (D,) and (C, D) to rounded cosines (C,), int64, in units of the last of the `SCORE_DECIMALS`.

    Each is summed by itself, not by a matrix product, whose order of summation depends on the place in the matrix:
    equal candidates have equal levels, whichever others stand beside them.
    """
    cosines = np.einsum("cd,d->c", candidates.astype(np.float64), query.astype(np.float64))
    return np.rint(cosines * 10**SCORE_DECIMALS).astype(np.int64)
