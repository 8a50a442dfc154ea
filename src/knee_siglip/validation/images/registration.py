"""Registration of an image with a copy cropped by a few percent: Gauss-Newton on local contrast.

The method is that of Lucas and Kanade (1981), for scale and shift along both axes.

Both are squares. A placement (scale_y, shift_y, scale_x, shift_x) leads from a point of the first image, measured from
its centre in shares of the side, to the same point of the second: `scale * at + shift`.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter1d

UNMOVED = np.array([1, 0, 1, 0], dtype=np.float32)
FARTHEST = np.array([0.12, 0.08, 0.12, 0.08], dtype=np.float32)
"""Off UNMOVED: 5 % cut off both sides of an image scale it by 0.9."""

COARSE = (0.0, 0.025, 0.05)
"""Shares cut off a side in the search for a start."""

FLOOR = 1.0
"""Grey levels added to the local deviation, so that the rounding of flat areas is not blown up to content."""

LEAST_GAIN = 0.3
DAMPING = 1e-3


def smooth(squares: np.ndarray, sigma: float) -> np.ndarray:
    """(..., S, S) blurred by a Gaussian. As matrix products, which take less time than SciPy's filter."""
    matrix = _gaussian(squares.shape[-1], sigma)
    blurred: np.ndarray = matrix @ squares @ matrix.T
    return blurred


@lru_cache(maxsize=8)
def _gaussian(size: int, sigma: float) -> np.ndarray:
    """(size, size) matrix that blurs an axis, whose edges go on beyond it."""
    return gaussian_filter1d(np.eye(size), sigma, axis=0, mode="nearest").astype(np.float32)


def normalise(squares: np.ndarray, sigma: float, floor: float = FLOOR) -> np.ndarray:
    """(..., S, S) grey levels to local contrast: minus the local mean, by the local deviation. Blind to windowing."""
    high = squares - smooth(squares, sigma)
    return high / (np.sqrt(smooth(high * high, sigma)) + np.float32(floor))


def interpolation(size: int, low: float, high: float) -> np.ndarray:
    """(size, size) matrix that samples an axis between `low` and 1 - `high`, linearly."""
    at = (low + (np.arange(size) + 0.5) / size * (1 - low - high)) * size - 0.5
    at = np.clip(at, 0, size - 1)
    left = np.minimum(at.astype(int), size - 2)
    matrix = np.zeros((size, size), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - (at - left)
    matrix[np.arange(size), left + 1] += at - left
    return matrix


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, ...) each: cosine of each pair, (N,)."""
    one, other = first.reshape(len(first), -1), second.reshape(len(second), -1)
    norms = np.sqrt(np.einsum("np,np->n", one, one) * np.einsum("np,np->n", other, other))
    return np.einsum("np,np->n", one, other) / (norms + np.float32(1e-9))


def placed(second: np.ndarray, placement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The second images (N, S, S) as the first ones would show them, and where both exist (N, S, S), bool."""
    rows, columns = _axes(second.shape[-1], placement)
    both = _inside(rows, columns)
    rows = rows / np.maximum(rows.sum(axis=2, keepdims=True), 1e-6)  # beyond the edge: the edge goes on, or 0
    columns = columns / np.maximum(columns.sum(axis=2, keepdims=True), 1e-6)
    return rows @ second @ columns.transpose(0, 2, 1), both


def continued(squares: np.ndarray, both: np.ndarray) -> np.ndarray:
    """(N, S, S) with the edge of the box `both` going on beyond it: there, what only one image shows must not tell."""
    rows, columns = _nearest_true(np.any(both, axis=2)), _nearest_true(np.any(both, axis=1))
    result: np.ndarray = squares[np.arange(len(squares))[:, None, None], rows[:, :, None], columns[:, None, :]]
    result[~both.any(axis=(1, 2))] = 0
    return result


def overlap(first: np.ndarray, second: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """Correlation of what both show, (N,). first, second: local contrast (N, S, S)."""
    moved, both = placed(second, placement)
    return correlation(first * both, moved * both)


def align(first: np.ndarray, second: np.ndarray, placement: np.ndarray, rounds: int) -> np.ndarray:
    """Improve placements (N, 4), each by `rounds` steps of Gauss-Newton. first, second: local contrast (N, S, S)."""
    size = first.shape[-1]
    at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    down_slope, right_slope = np.gradient(second, axis=1) * size, np.gradient(second, axis=2) * size
    for _ in range(rounds):
        rows, columns = _axes(size, placement)
        both = _inside(rows, columns)
        turned = columns.transpose(0, 2, 1)
        moved, target = (rows @ second @ turned) * both, first * both
        down, right = (rows @ down_slope @ turned) * both, (rows @ right_slope @ turned) * both
        gain = (target * moved).sum(axis=(1, 2)) / ((moved * moved).sum(axis=(1, 2)) + np.float32(1e-6))
        gain = np.maximum(gain, LEAST_GAIN)[:, None]
        jacobian = np.stack([down * at[:, None], down, right * at, right], axis=1).reshape(len(first), 4, -1)
        step = _solve(jacobian * gain[:, None], (target - gain[:, None] * moved).reshape(len(first), -1))
        placement = UNMOVED + np.clip(placement + step - UNMOVED, -FARTHEST, FARTHEST)
    return placement


def coarse_match(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation over 81 boxes of either image, (N,), and its placement (N, 4). first, second: (N, S, S)."""
    of_first, cut_first = _best_box(first, second)
    of_second, cut_second = _best_box(second, first)
    better = of_first >= of_second
    return np.maximum(of_first, of_second), np.where(better[:, None], _inverse(cut_first), cut_second)


def _axes(size: int, placement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S) each: linear interpolation of rows and of columns, nothing beyond the edge."""
    return _axis(size, placement[:, :1], placement[:, 1:2]), _axis(size, placement[:, 2:3], placement[:, 3:])


def _axis(size: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    points = np.arange(size, dtype=np.float32)
    at = (points + 0.5) / size - 0.5
    places = (scale * at + shift + 0.5) * size - 0.5
    return np.maximum(1 - np.abs(places[:, :, None] - points), 0)


def _nearest_true(marked: np.ndarray) -> np.ndarray:
    """For each place the nearest one that is marked, of one run of marks in each row. marked: (N, S), bool."""
    size = marked.shape[1]
    first, last = marked.argmax(axis=1), size - 1 - marked[:, ::-1].argmax(axis=1)
    return np.clip(np.arange(size), first[:, None], last[:, None])


def _inside(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return (rows.sum(axis=2) > 0.99)[:, :, None] & (columns.sum(axis=2) > 0.99)[:, None, :]


def _solve(jacobian: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Damped least squares (Levenberg-Marquardt). jacobian: (N, 4, P); residual: (N, P). Returns (N, 4)."""
    hessian = jacobian @ jacobian.transpose(0, 2, 1)
    diagonal = range(4)
    hessian[:, diagonal, diagonal] = hessian[:, diagonal, diagonal] * np.float32(1 + DAMPING) + np.float32(DAMPING)
    return np.linalg.solve(hessian, jacobian @ residual[:, :, None])[:, :, 0]


@lru_cache(maxsize=4)
def _coarse_axes(size: int) -> tuple[list[tuple[float, ...]], np.ndarray]:
    pairs = list(product(COARSE, repeat=2))
    return pairs, np.stack([interpolation(size, low, high) for low, high in pairs])


def _best_box(cut: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best of the 81 boxes of `cut` against the whole of the other, and the placement that leads from whole to cut."""
    pairs, axes = _coarse_axes(cut.shape[-1])
    count = len(cut)
    target = whole.reshape(count, -1)
    target = target / (np.linalg.norm(target, axis=1, keepdims=True) + np.float32(1e-9))
    wide = np.tensordot(cut, axes, axes=([2], [2]))  # (N, S, 9, S)
    best, placement = np.full(count, -1, dtype=np.float32), np.zeros((count, 4), dtype=np.float32)
    for column, sides in enumerate(pairs):
        boxes = np.matmul(axes[:, None], wide[None, :, :, column]).reshape(len(pairs), count, -1)
        norms = np.sqrt(np.einsum("hnp,hnp->hn", boxes, boxes)) + np.float32(1e-9)
        scores = np.einsum("hnp,np->hn", boxes, target) / norms
        row, top = scores.argmax(axis=0), scores.max(axis=0)
        better = top > best
        best[better] = top[better]
        found = np.array([_of_edges(pairs[index] + sides) for index in row], dtype=np.float32)
        placement[better] = found[better]
    return best, placement


def _of_edges(edges: tuple[float, ...]) -> tuple[float, float, float, float]:
    top, bottom, left, right = edges
    return 1 - top - bottom, (top - bottom) / 2, 1 - left - right, (left - right) / 2


def _inverse(placement: np.ndarray) -> np.ndarray:
    scale, shift = placement[:, ::2], placement[:, 1::2]
    return np.stack([1 / scale, -shift / scale], axis=2).reshape(len(placement), 4)
