"""Segments of the pixel store: complete or absent, whatever kills the writer.

A segment is `<name>.npy` (uint8 (N, S, S)) and `<name>.ids` (a line `image_id pixel_hash` per row, both sha256). The
ids come last: a segment exists from the moment its `.ids` does. Both are written as `.tmp` in this folder and renamed.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from knee_siglip.errors import UserError

PIXELS, IDS, TEMPORARY = ".npy", ".ids", ".tmp"
HASH_LENGTH = 64


@dataclass(frozen=True)
class Segment:
    """A complete segment: `pixels` is memory-mapped uint8 (N, S, S); the two lists have N entries."""

    file: Path
    pixels: np.ndarray
    image_ids: list[str]
    pixel_hashes: list[str]


def write_segment(folder: Path, pixels: np.ndarray, image_ids: Sequence[str], pixel_hashes: Sequence[str]) -> None:
    """Add a segment to the folder. pixels: uint8 (N, S, S), C order.

    Raises:
        UserError: it cannot be written (disk full, no permission); nothing of it is left behind.
    """
    name = uuid.uuid4().hex
    lines = "".join(f"{image_id} {digest}\n" for image_id, digest in zip(image_ids, pixel_hashes, strict=True))

    def write_pixels(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(pixels))
        file.write(pixels.data)  # not ndarray.tofile: it hides the system's reason for a failure

    pixels_file = folder / f"{name}{PIXELS}"
    write_atomically(pixels_file, write_pixels)
    try:
        write_atomically(folder / f"{name}{IDS}", lambda file: file.write(lines.encode()))
    except BaseException:
        pixels_file.unlink(missing_ok=True)
        raise


def read_segments(folder: Path, image_size: int) -> tuple[list[Segment], list[Path]]:
    """All complete segments of a folder, by name, and the `.ids` files of those that are damaged."""
    segments, damaged = [], []
    for ids_file in sorted(folder.glob(f"*{IDS}")):
        try:
            segments.append(_read_segment(ids_file, image_size))
        except (OSError, ValueError):
            damaged.append(ids_file)
    return segments, damaged


def remove_remains(folder: Path, damaged: Sequence[Path]) -> None:
    """Remove damaged segments and what killed writers left. Only while no other process writes to the folder."""
    for ids_file in damaged:
        ids_file.unlink(missing_ok=True)
    for file in folder.glob(f"*{TEMPORARY}"):
        file.unlink(missing_ok=True)
    for file in folder.glob(f"*{PIXELS}"):
        if not file.with_suffix(IDS).exists():
            file.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write` into a temporary file beside `path`, flush it to the disk, rename: all of the file or nothing.

    Raises:
        UserError: the system refuses; the temporary file is removed.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; free some space or check the rights"
            ) from None
        raise


def _read_segment(ids_file: Path, image_size: int) -> Segment:
    """Raises OSError or ValueError where the pixels are missing, truncated, or of another shape than the ids say."""
    pixels_file = ids_file.with_suffix(PIXELS)
    pixels = np.lib.format.open_memmap(pixels_file, mode="r")
    pairs = [line.split() for line in ids_file.read_text(encoding="ascii").splitlines()]
    if pixels.dtype != np.uint8 or pixels.shape != (len(pairs), image_size, image_size):
        raise ValueError(f"{pixels_file}: {pixels.dtype} {pixels.shape} for {len(pairs)} ids")
    if any(len(pair) != 2 or len(pair[0]) != HASH_LENGTH or len(pair[1]) != HASH_LENGTH for pair in pairs):
        raise ValueError(f"{ids_file}: damaged")
    return Segment(pixels_file, pixels, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
