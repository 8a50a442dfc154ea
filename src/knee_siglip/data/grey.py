"""What every image format shares: the error, the size limit, and the step from deep greys to 8 bits."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from knee_siglip.errors import UserError

MAX_PIXELS = 100_000_000
"""A long-leg radiograph has 30 million; a file that claims more than this is damaged or a decompression bomb."""

TAIL_PERCENT = 0.1
"""Share of the pixels at either end that may clip: hot pixels do not squeeze the knee into a few greys, a lead marker
(0.2 % of the area and more) stays."""


class ImageError(UserError):
    """An image that cannot be read; the message names the file and what is wrong with it."""


class MissingImageError(ImageError):
    """There is no such file."""


class Decoded(NamedTuple):
    """An image file's content. grey: uint8 (H, W), upright; bits: per sample in the file; kind: `PNG I;16`."""

    grey: np.ndarray
    bits: int
    kind: str


def check_size(width: int, height: int, path: Path) -> None:
    """Raise `ImageError` before a decoder allocates memory for an absurd size."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"{path}: claims {width} x {height} pixels; at most {MAX_PIXELS:,} are read")


def stretch(values: np.ndarray) -> np.ndarray:
    """Deep greys (H, W), integer or float, to uint8: the range between the 0.1 and 99.9 percentiles becomes 0-255.

    The bits that a detector really uses are not known from the file (12 in a 16-bit container, an offset, ...), so the
    range is the image's own. Fewer than 256 integer levels are only shifted: noise of a flat image is not blown up.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.percentile(finite, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    if values.dtype.kind != "f":
        high = max(high, low + 255)
    return to_uint8(np.nan_to_num(values, nan=low, posinf=high, neginf=low), float(low), float(high))


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] linearly to 0-255, clipped and rounded; all 0 where the range is empty."""
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    grey: np.ndarray = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return grey
