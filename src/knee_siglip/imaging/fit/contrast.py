"""Local contrast normalisation: removes exposure, gamma and soft-tissue gradients from a radiograph.

The smooth local mean is computed at a few grid nodes and interpolated, as products with small matrices. Their numbers
are integers times a power of two, of so few bits that every sum is exact: the same image gives the same bits with any
BLAS, number of threads and machine.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WINDOW_SHARE = 0.20
"""Side of the averaging window as a share of the image side: the knee looks alike at 224 and at 448 pixels."""

STD_FLOOR = 8.0
"""Grey levels (of 255). Below it a region is flat (air, collimator) and its noise is not blown up."""

GREY_PER_STD = 44.0
"""One local standard deviation in grey levels: +-2.9 of them fill 0-255 around 128."""

NODES_PER_BOX = 3.5
"""Grid nodes per side of a box: at 3.5, one pixel in 200 differs by more than one grey from a mean at every pixel."""

WEIGHT_BITS = 9
"""Interpolation weights are multiples of 2^-9; the interpolated values get the bits that they leave."""

SINGLE, DOUBLE = 24, 53
"""Bits within which sums of integers are exact in float32 and float64."""


def local_contrast(grey: np.ndarray) -> np.ndarray:
    """Subtract the local mean, divide by the local standard deviation; 128 is the local mean.

    The mean is taken over a triangular window, two passes of a box with its borders repeated: a single box draws
    streaks beside a bright implant. grey: (H, W), uint8. Returns the same.
    """
    window = _Window.of(*grey.shape)
    deviation = np.multiply(grey, window.unit, dtype=window.dtype)
    deviation -= window.interpolate(window.averages(deviation, 255 * window.unit))
    squares = np.square(deviation)
    np.rint(squares, out=squares)
    variance = window.averages(squares, (255 * window.unit) ** 2)
    std = np.sqrt(np.maximum(variance, (STD_FLOOR * window.unit) ** 2))
    deviation *= window.interpolate(GREY_PER_STD / std)
    deviation += 128.5  # the cast cuts off
    return deviation.clip(0, 255, out=deviation).astype(np.uint8)


@dataclass(frozen=True)
class _Axis:
    """sums: (R, S), at each of R nodes the window's integer weights; weights: (S, R) from the nodes to all pixels."""

    sums: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class _Window:
    """The window of one image shape.

    unit: what a grey level is multiplied by, a power of two: squares of deviations, rounded, are summed exactly.
    """

    rows: _Axis
    columns: _Axis
    side: int
    unit: float
    dtype: type
    bits: int

    @staticmethod
    @lru_cache(maxsize=64)
    def of(height: int, width: int) -> "_Window":
        """For images (height, width)."""
        side = max(3, round(WINDOW_SHARE * min(height, width) / 2) | 1)
        dtype, bits = (np.float32, SINGLE) if side < 64 else (np.float64, DOUBLE)
        unit = min(1.0, _power_of_two(2.0 ** (bits / 2) / (255 * side)))
        return _Window(_axis(height, side, dtype), _axis(width, side, dtype), side, unit, dtype, bits)

    def averages(self, pixels: np.ndarray, peak: float) -> np.ndarray:
        """Window averages of (H, W) multiples of `unit`, at most `peak`, at the nodes: (rows' R, columns' R)."""
        sums = self.rows.sums @ pixels
        area = self.side**2
        sums = _rounded(sums, _power_of_two(2.0**self.bits / (area * area * peak)))
        average: np.ndarray = sums @ self.columns.sums.T / area**2
        return average

    def interpolate(self, values: np.ndarray) -> np.ndarray:
        """Values at the nodes to (H, W)."""
        top = 2 * max(float(np.abs(values).max()), 1.0)  # a cubic overshoots by less than a half, in either pass
        step = _power_of_two(2.0 ** (self.bits - WEIGHT_BITS - 1) / top)
        along = self.rows.weights @ _rounded(values, step)
        return _rounded(along, step) @ self.columns.weights.T


def _axis(length: int, side: int, dtype: type) -> _Axis:
    """One axis of `length` pixels."""
    pixel, half = np.arange(length), side // 2
    box = (np.abs(pixel[:, None] - pixel) <= half).astype(float)
    box[:, 0] += np.maximum(half - pixel, 0)  # pixels before the first are like it
    box[:, -1] += np.maximum(half - pixel[::-1], 0)
    step = max(1, round(side / NODES_PER_BOX))
    nodes = np.rint(np.linspace(0, length - 1, math.ceil((length - 1) / step) + 1)).astype(int)
    weights = _cubic_weights(nodes, length) if step > 1 else np.eye(length)
    return _Axis((box[nodes] @ box).astype(dtype), np.ascontiguousarray(weights, dtype=dtype))


def _cubic_weights(nodes: np.ndarray, length: int) -> np.ndarray:
    """(length, R): the cubic through the four nearest nodes (Lagrange), rounded; every row sums up to 1."""
    pixel = np.arange(length)
    first = np.clip(np.searchsorted(nodes, pixel, side="right") - 2, 0, len(nodes) - 4)
    near = nodes[first[:, None] + np.arange(4)].astype(float)
    weights = np.zeros((length, len(nodes)))
    for k in range(4):
        others = np.delete(near, k, axis=1)
        weight = np.prod((pixel[:, None] - others) / (near[:, k : k + 1] - others), axis=1)
        weights[pixel, first + k] = np.rint(weight * 2**WEIGHT_BITS)
    weights[pixel, weights.argmax(axis=1)] += 2**WEIGHT_BITS - weights.sum(axis=1)
    return weights / 2**WEIGHT_BITS


def _rounded(values: np.ndarray, step: float) -> np.ndarray:
    """To multiples of 1 / step, a power of two."""
    scaled: np.ndarray = values * values.dtype.type(step)
    np.rint(scaled, out=scaled)
    scaled *= values.dtype.type(1 / step)
    return scaled


def _power_of_two(value: float) -> float:
    """The largest power of two that is not above `value`."""
    return math.ldexp(0.5, math.frexp(value)[1])
