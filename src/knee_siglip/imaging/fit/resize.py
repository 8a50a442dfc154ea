"""Antialiased resizing: Lanczos as products with small matrices, three times as fast as Pillow's.

As in contrast.py the numbers have so few bits that all sums are exact: the same bits with any BLAS and machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

LOBES = 3
"""Lanczos-3: sinc(x) sinc(x / 3)."""

WEIGHT_BITS, BETWEEN = 12, 4.0
"""Weights are multiples of 2^-12, values between the passes of 1/4 grey. Lanczos weights' sizes sum up to at most 1.54,
so that no sum reaches 2^24 such units: exact in float32."""

BAND = 16
"""Output pixels of one matrix: larger ones hold more zeros, smaller ones are more calls; measured from 512 to 224."""

GAP = 3
"""An image more than twice as many times too large is first averaged over whole numbers of pixels, which costs no
visible detail (Pillow's `reducing_gap`)."""


def resize(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W) to uint8 (height, width)."""
    if grey.shape == (height, width):
        return grey.copy()
    factors = max(1, int(grey.shape[0] / height / GAP)), max(1, int(grey.shape[1] / width / GAP))
    sides = grey.shape[0] / factors[0], grey.shape[1] / factors[1]
    if factors != (1, 1):
        grey = np.asarray(Image.fromarray(grey).reduce((factors[1], factors[0])))
    between = np.empty((height, grey.shape[1]), dtype=np.float32)
    for band in _bands(grey.shape[0], sides[0], height, BETWEEN):
        np.matmul(band.weights, grey[band.source].astype(np.float32), out=between[band.target])
    np.rint(between, out=between)
    resized = np.empty((height, width), dtype=np.float32)
    for band in _bands(grey.shape[1], sides[1], width, 1 / BETWEEN):
        np.matmul(between[:, band.source], band.weights.T, out=resized[:, band.target])
    resized += np.float32(0.5)  # the cast cuts off
    return resized.clip(0, 255, out=resized).astype(np.uint8)


@dataclass(frozen=True)
class _Band:
    """weights: (target, source), from a stretch of the old pixels to a stretch of the new ones."""

    source: slice
    target: slice
    weights: np.ndarray


@lru_cache(maxsize=256)
def _bands(pixels: int, side: float, length: int, gain: float) -> list[_Band]:
    """From `pixels` old ones, the last of which may stick out of the image's `side`, to `length` new ones.

    gain: a power of two that all weights are multiplied by.
    """
    scale = side / length
    reach = max(1.0, scale)
    offset = (np.arange(pixels) + 0.5 - (np.arange(length)[:, None] + 0.5) * scale) / reach
    near = np.abs(offset) < LOBES  # a thirtieth: images of a thousand sizes need a thousand tables
    weights = np.zeros(offset.shape)
    weights[near] = np.sinc(offset[near]) * np.sinc(offset[near] / LOBES)
    weights = np.rint(weights / weights.sum(axis=1, keepdims=True) * 2**WEIGHT_BITS)
    weights[np.arange(length), weights.argmax(axis=1)] += 2**WEIGHT_BITS - weights.sum(axis=1)
    weights *= gain / 2**WEIGHT_BITS
    bands = []
    for start in range(0, length, BAND):
        target = slice(start, min(start + BAND, length))
        used = np.flatnonzero(weights[target].any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(_Band(source, target, weights[target, source].astype(np.float32)))
    return bands
