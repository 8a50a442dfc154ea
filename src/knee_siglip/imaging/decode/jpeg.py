"""JPEG: pixels that are missing. libjpeg fills them with grey where a file was cut and then closed by an end marker."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from knee_siglip.imaging.decode.decoded import ImageError, shown
from knee_siglip.imaging.decode.modes import grey_of

END = b"\xff\xd9"
MORE = bytes(np.random.default_rng(0).integers(0, 255, 512, dtype=np.uint8))
"""Compressed data without a marker; a decoder that still waits for pixels takes it for some."""

ENDS = (slice(4), slice(-4, None))
"""Rows, or columns, of a corner; an image may be turned."""


def check_complete(data: bytes, image: Image.Image, grey: np.ndarray, path: Path) -> None:
    """Refuse a JPEG with an end marker before its last pixel.

    More data before the marker changes the picture only where pixels were missing: a decoder stops after the last one.
    Missing blocks of a sequential JPEG are flat, so one without a flat corner need not be decoded a second time.

    Args:
        image: as Pillow opened it. grey: `grey_of` it, uint8 (H, W).
    """
    corners = (grey[rows, columns] for rows in ENDS for columns in ENDS)
    end = data.rfind(END)
    if end < 0 or not ("progressive" in image.info or any(corner.min() == corner.max() for corner in corners)):
        return
    with Image.open(io.BytesIO(data[:end] + MORE + data[end:]), formats=("JPEG",)) as longer:
        if not np.array_equal(grey_of(longer, data), grey):  # turned upright, as `grey` is
            raise ImageError(f"{shown(path)}: is damaged: its pixels end early, before an end marker")
