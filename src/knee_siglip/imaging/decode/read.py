"""Image file to pixels: training, evaluation and inference all read images here."""

import os
import stat
import unicodedata
from functools import lru_cache
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
        with path.open("rb", buffering=0) as file:
            data = file.readall()
    except FileNotFoundError:
        raise MissingImageError(f"{shown(path)}: no such file{_hint(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{shown(path)}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(data) < facts.st_size:
        raise ImageError(f"{shown(path)}: cannot be read: it became shorter meanwhile")
    return data


def _hint(path: Path) -> str:
    """What may have gone wrong with the name of a missing file; empty if nothing suggests itself."""
    if "~" in path.parts:
        return "; ~ is not expanded: write the folder in full"
    try:
        by_key, by_stem = _names_in(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        return "; its folder does not exist either"
    found = by_key.get(_key(path.name)) or by_stem.get(_key(path.stem))
    return f"; did you mean {shown(Path(found))}?" if found else ""


@lru_cache(maxsize=8)
def _names_in(folder: Path, _changed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Names in a folder by `_key` of the whole name and of the name without its suffix."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return {_key(name): name for name in names}, {_key(Path(name).stem): name for name in names}


def _key(name: str) -> str:
    """Equal for names that differ in case, or in how their accents are encoded, only."""
    return unicodedata.normalize("NFC", name).casefold()


def decode(data: bytes, path: Path) -> Decoded:
    """Decode a file's bytes completely.

    path: only names the file, in errors and by its ending.
    """
    return decode_dicom(data, path) if is_dicom(data, path) else decode_picture(data, path)
