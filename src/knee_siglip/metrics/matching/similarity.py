"""Cosine scores in which equal means equal."""

import numpy as np

SCORE_DECIMALS = 6
"""Finer differences of a cosine are float32 rounding noise: without this, a collapsed model is ranked by that noise."""

PAIRS_AT_ONCE = 8192
"""Of `score_levels`, held in memory."""


def cosine_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2-normalised (Q, D) and (C, D) to cosines (Q, C), float64, rounded to `SCORE_DECIMALS`."""
    assert queries.shape[1] == candidates.shape[1], (queries.shape, candidates.shape)
    return np.round(queries.astype(np.float64) @ candidates.astype(np.float64).T, SCORE_DECIMALS)


def score_levels(queries: np.ndarray, candidates: np.ndarray, asked: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """Rounded cosines (P,) of the pairs of queries[asked] and candidates[offered], int64, in units of the last decimal.

    Each is summed by itself, not by a matrix product, whose order of summation depends on the place in the matrix:
    equal candidates have equal levels, whichever others stand beside them.

    Args:
        queries: (Q, D), L2-normalised.
        candidates: (C, D), L2-normalised.
        asked, offered: (P,) row numbers of either.
    """
    levels = np.zeros(len(asked), np.int64)
    for start in range(0, len(asked), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        left, right = queries[asked[part]], candidates[offered[part]]
        cosines = np.einsum("pd,pd->p", left.astype(np.float64, copy=False), right.astype(np.float64, copy=False))
        levels[part] = np.rint(cosines * 10**SCORE_DECIMALS)
    return levels
