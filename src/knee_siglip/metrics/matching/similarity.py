"""Cosine scores in which equal means equal."""

import numpy as np

SCORE_DECIMALS = 6
"""Finer differences of a cosine are float32 rounding noise: without this, a collapsed model is ranked by that noise."""


def cosine_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2-normalised (Q, D) and (C, D) to cosines (Q, C), float64, rounded to `SCORE_DECIMALS`."""
    assert queries.shape[1] == candidates.shape[1], (queries.shape, candidates.shape)
    cosines = queries.astype(np.float64, copy=False) @ candidates.astype(np.float64, copy=False).T
    return np.round(cosines, SCORE_DECIMALS, out=cosines)
