"""What all image formats share: the result, the errors and the limit on an image's size."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from knee_siglip.core.errors import UserError

MAX_PIXELS = 100_000_000
"""A long-leg radiograph has 30 million; a file that claims more than this is damaged or a decompression bomb."""

LONGEST_PATH, NAMED = 4096, 100


class ImageError(UserError):
    """An image that cannot be read; the message names the file and what is wrong with it."""


class MissingImageError(ImageError):
    """There is no such file."""


class Decoded(NamedTuple):
    """An image file's content.

    grey: uint8 (H, W), upright; bits: per sample in the file; kind: `PNG I;16`; doubtful: elements of a DICOM that were
    unusable and passed over.
    """

    grey: np.ndarray
    bits: int
    kind: str
    doubtful: tuple[str, ...] = ()


def shown(path: Path) -> str:
    """The path as messages show it: unprintable characters escaped, absurdly long ones cut in the middle."""
    name = str(path)
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= LONGEST_PATH else f"{name[:NAMED]}...{name[-NAMED:]}"


def check_size(width: int, height: int, path: Path) -> None:
    """Raise `ImageError` before a decoder allocates memory for an absurd size."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageError(f"{shown(path)}: claims {width} x {height} pixels; 1 to {MAX_PIXELS:,} are read")
