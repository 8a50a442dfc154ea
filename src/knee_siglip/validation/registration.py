"""Do two images show the same, one of them cropped by a few percent? Both are squares; a box is searched for.

Edges are (top, bottom, left, right) as shares of the side: a positive edge is cut off the first image, a negative one
off the second, and what is left of both is stretched to the square again.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter

COARSE = (0.0, 0.025, 0.05)
STEPS = (0.0125, 0.006)
LAST_STEP = 0.003
SEARCH_SIGMA = 2.0
LARGEST_EDGE = 0.06

HOPELESS = 0.5
"""Correlation at half size below which the search is given up."""

FLOOR = 1.0
"""Grey levels added to the local deviation, so that the rounding of flat areas is not blown up to content."""


def normalise(square: np.ndarray, sigma: float) -> np.ndarray:
    """(..., S, S) grey levels to local contrast: minus the local mean, by the local deviation. Blind to windowing."""
    sigmas = (0.0,) * (square.ndim - 2) + (sigma, sigma)
    high = square - gaussian_filter(square, sigmas, mode="nearest")
    deviation = np.sqrt(gaussian_filter(high * high, sigmas, mode="nearest"))
    normal: np.ndarray = high / (deviation + np.float32(FLOOR))
    return normal


def interpolation(size: int, low: float, high: float) -> np.ndarray:
    """(size, size) matrix that samples an axis between `low` and 1 - `high`, linearly."""
    at = (low + (np.arange(size) + 0.5) / size * (1 - low - high)) * size - 0.5
    at = np.clip(at, 0, size - 1)
    left = np.minimum(at.astype(int), size - 2)
    matrix = np.zeros((size, size), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - (at - left)
    matrix[np.arange(size), left + 1] += at - left
    return matrix


def crop(square: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Cut the positive edges off (S, S) and stretch the rest to (S, S)."""
    top, bottom, left, right = np.maximum(edges, 0)
    size = len(square)
    cropped: np.ndarray = interpolation(size, top, bottom) @ square @ interpolation(size, left, right).T
    return cropped


def coarse_match(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation over 81 boxes of either image. first, second: (N, S, S). Returns (N,) and edges (N, 4)."""
    of_first, cut_first = _best_box(first, second)
    of_second, cut_second = _best_box(second, first)
    better = of_first >= of_second
    return np.maximum(of_first, of_second), np.where(better[:, None], cut_first, -cut_second)


def fine_match(first: np.ndarray, second: np.ndarray, edges: np.ndarray, sigma: float) -> tuple[float, np.ndarray]:
    """Improve the edges, axis by axis in ever smaller steps. first, second: grey levels (S, S).

    Returns the correlation of what both show (each normalised after it was cropped) and the edges.
    """
    halves = normalise(_half(first), SEARCH_SIGMA), normalise(_half(second), SEARCH_SIGMA)
    for step in STEPS:
        score = 0.0
        for axis in (0, 2, 0, 2):
            score, edges = _improve(*halves, edges, axis, step)
        if score < HOPELESS:
            return score / 2, edges
    wholes = normalise(first, sigma), normalise(second, sigma)
    for axis in (0, 2):
        _, edges = _improve(*wholes, edges, axis, LAST_STEP)
    return correlate(first, second, edges, sigma), edges


def correlate(first: np.ndarray, second: np.ndarray, edges: np.ndarray, sigma: float) -> float:
    """Normalised correlation of the local contrast of what is left of both, where both have any."""
    one, other = normalise(crop(first, edges), sigma), normalise(crop(second, -edges), sigma)
    both = (gaussian_filter(one * one, sigma) > 0.1) & (gaussian_filter(other * other, sigma) > 0.1)
    if both.mean() < 0.3:  # too little in common to tell
        return 0.0
    one, other = one[both], other[both]
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


@lru_cache(maxsize=4)
def _coarse_axes(size: int) -> tuple[list[tuple[float, float]], np.ndarray]:
    pairs = list(product(COARSE, repeat=2))
    return pairs, np.stack([interpolation(size, low, high) for low, high in pairs])


def _best_box(cut: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best of the 81 boxes of `cut` against the whole of the other."""
    pairs, axes = _coarse_axes(cut.shape[-1])
    count = len(cut)
    target = whole.reshape(count, -1)
    target = target / (np.linalg.norm(target, axis=1, keepdims=True) + 1e-9)
    wide = np.tensordot(cut, axes, axes=([2], [2]))  # (N, S, 9, S)
    best, edges = np.full(count, -1.0), np.zeros((count, 4))
    for column, sides in enumerate(pairs):
        boxes = np.matmul(axes[:, None], wide[None, :, :, column]).reshape(len(pairs), count, -1)
        norms = np.sqrt(np.einsum("hnp,hnp->hn", boxes, boxes)) + 1e-9
        scores = np.einsum("hnp,np->hn", boxes, target) / norms
        row, top = scores.argmax(axis=0), scores.max(axis=0)
        better = top > best
        best[better] = top[better]
        edges[better] = np.array([pairs[index] + sides for index in row])[better]
    return best, edges


def _improve(
    first: np.ndarray, second: np.ndarray, edges: np.ndarray, axis: int, step: float
) -> tuple[float, np.ndarray]:
    """The best of nine pairs of edges of one axis (0: top and bottom, 2: left and right)."""
    across = 2 - axis
    one, other = (_along(image, cut[across : across + 2], across) for image, cut in ((first, edges), (second, -edges)))
    tried = np.clip(
        edges[axis : axis + 2] + step * np.array(list(product((0, -1, 1), repeat=2))), -LARGEST_EDGE, LARGEST_EDGE
    )
    ones, others = (
        np.stack([_along(image, cut, axis).ravel() for cut in sign * tried]) for image, sign in ((one, 1), (other, -1))
    )
    norms = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1) + 1e-9
    scores = np.einsum("hp,hp->h", ones, others) / norms
    best = int(scores.argmax())
    edges = edges.copy()
    edges[axis : axis + 2] = tried[best]
    return float(scores[best]), edges


def _half(square: np.ndarray) -> np.ndarray:
    """(S, S) to (S / 2, S / 2), averaged."""
    half: np.ndarray = (square[::2, ::2] + square[1::2, ::2] + square[::2, 1::2] + square[1::2, 1::2]) / 4
    return half


def _along(square: np.ndarray, cut: np.ndarray, axis: int) -> np.ndarray:
    low, high = np.maximum(cut, 0)
    matrix = interpolation(len(square), float(low), float(high))
    along: np.ndarray = matrix @ square if axis == 0 else square @ matrix.T
    return along
