"""Image file to pixels: training, evaluation and inference all read images here."""

import stat
from pathlib import Path

import numpy as np

from knee_siglip.imaging.decode.decoded import Decoded, ImageError, MissingImageError, shown
from knee_siglip.imaging.decode.dicom import decode_dicom, is_dicom
from knee_siglip.imaging.decode.raster import decode_picture

__all__ = ["Decoded", "ImageError", "MissingImageError", "decode", "read_bytes", "read_grey"]

MAX_BYTES = 512 * 1024**2
"""No radiograph's file is larger: a long-leg image of 30 million pixels has 60 MB, uncompressed."""


def read_grey(path: Path) -> np.ndarray:
    """Read any supported file (`raster.FORMATS`, and DICOM) as grey.

    Returns uint8 (H, W), upright. 8-bit greys stay as they are; deeper ones are stretched (`exposure.stretch`).

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, too large, no image or several.
    """
    return decode(read_bytes(path), path).grey


def read_bytes(path: Path) -> bytes:
    """The file's bytes; `ImageError` where there is none, nothing in it, or what is no file (a pipe would hang)."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            what = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, socket or device"
            raise ImageError(f"{shown(path)}: cannot be read: it is {what}, no file")
        if facts.st_size > MAX_BYTES:
            raise ImageError(f"{shown(path)}: has {facts.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        if not facts.st_size:
            raise ImageError(f"{shown(path)}: is empty (0 bytes)")
        with path.open("rb") as file:
            data = file.read(facts.st_size)
    except FileNotFoundError:
        raise MissingImageError(f"{shown(path)}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{shown(path)}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(data) != facts.st_size:
        raise ImageError(f"{shown(path)}: cannot be read: it became shorter meanwhile")
    return data


def decode(data: bytes, path: Path) -> Decoded:
    """Decode a file's bytes completely.

    path: only names the file, in errors and by its ending.
    """
    return decode_dicom(data, path) if is_dicom(data, path) else decode_picture(data, path)
