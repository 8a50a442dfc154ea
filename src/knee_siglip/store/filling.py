"""Fill the store: decode images into it on all cores, or add rows that are ready.

Workers write pixels into their slots; this process commits what they finished (segments.py), so no worker waits for the
disk. A killed fill loses what was done since the last commit, and its slots are used again.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import lock
from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.read import ImageError, MissingImageError, decode, read_bytes
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.segments import Record, RowLayout, RowWriter, Segment, Slot, commit, free_slots, pixel_rows

LOCK = ".lock"
IMAGES_PER_CHUNK = 64
COMMIT_SECONDS = 0.5
SHOWN_FAILURES = 5
SPARE_BYTES = 2**20
"""Beside the rows: logs, folders."""

WAY_OUT = "free some space, see `knee-siglip store prune`, or set KNEE_SIGLIP_STORE to a folder on another disk"


Order = tuple[str, Path, Slot]
"""An image to decode: its id, its original, and where its pixels go."""

Filled = tuple[Slot, str, str]
"""Slot, image id and row hash of an image whose row was written."""


def fill(
    folder: Path,
    transform: Transform,
    segments: Sequence[Segment],
    todo: Sequence[tuple[str, Path]],
    workers: int | None,
) -> None:
    """Decode (image_id, file) pairs into the folder, whose lock the caller holds.

    Raises:
        UserError: unreadable images, after all others are in; too little space, before anything is decoded.
    """
    layout = pixel_rows(transform.image_size)
    require_space(folder, len(todo), layout)
    slots = free_slots(folder, segments, layout, len(todo))
    orders: list[Order] = [(image_id, file, slot) for (image_id, file), slot in zip(todo, slots, strict=True)]
    decode_chunk = partial(_decode_chunk, transform)
    results = work_in_chunks(decode_chunk, orders, IMAGES_PER_CHUNK, "Decoding images", workers)
    failures: list[ImageError] = []

    def finished() -> Iterator[list[Filled]]:
        for done, failed in results:
            failures.extend(failed)
            yield done

    try:
        _commit_all(folder, layout, len(todo), finished())
    finally:
        results.close()  # no worker may write once the lock is given back
    if failures:
        raise UserError(_describe_failures(folder, failures))


def add_rows(
    folder: Path,
    segments: Sequence[Segment],
    layout: RowLayout,
    count: int,
    rows: Iterable[tuple[str, str, np.ndarray]],
) -> None:
    """Add the ready rows of `count` images: id, row hash, array. What `rows` gave before it raised is committed.

    Raises:
        UserError: too little space.
    """
    require_space(folder, count, layout)
    slots = free_slots(folder, segments, layout, count)
    with RowWriter() as writer:

        def written() -> Iterator[list[Filled]]:
            for (image_id, row_hash, row), slot in zip(rows, slots, strict=True):
                writer.write(slot, row)
                yield [(slot, image_id, row_hash)]

        _commit_all(folder, layout, count, written())


def require_space(folder: Path, images: int, layout: RowLayout) -> None:
    """Raise `UserError` where the disk has no room for this many images."""
    if shutil.disk_usage(folder).free < images * layout.nbytes + SPARE_BYTES:
        raise UserError(f"too little space for the store {folder} ({_space(folder, images, layout)}); {WAY_OUT}")


def _commit_all(folder: Path, layout: RowLayout, count: int, chunks: Iterator[list[Filled]]) -> None:
    """Commit `count` images as they get written, and what is finished whatever ends the work.

    Raises:
        UserError: the disk refuses.
    """
    pending: list[Filled] = []
    committed, last = 0, time.monotonic()
    try:
        try:
            for chunk in chunks:
                pending += chunk
                if time.monotonic() - last > COMMIT_SECONDS:
                    _commit_filled(pending)
                    committed += len(pending)
                    pending, last = [], time.monotonic()
        finally:
            _commit_filled(pending)
    except OSError as error:
        raise UserError(f"{_refusal(folder, error)} ({_space(folder, count - committed, layout)}); {WAY_OUT}") from None


def _commit_filled(filled: Sequence[Filled]) -> None:
    for file, group in groupby(sorted(filled), key=lambda each: each[0].file):
        commit(file, [Record(slot.row, image_id, row_hash) for slot, image_id, row_hash in group])


@contextmanager
def locked(folder: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Lock a folder of the store for writing; the folder is made if needed.

    Forked workers share the lock, so nobody gets a slot into which a killed builder's worker may still be writing.

    Raises:
        UserError: the folder cannot be written or locked, or another process still holds the lock after `wait` seconds.
    """
    try:
        with lock(folder / LOCK, f"filling {folder}", wait=wait):
            yield
    except OSError as error:
        raise UserError(f"{_refusal(folder, error)}; make it writable, or set KNEE_SIGLIP_STORE elsewhere") from None


def _decode_chunk(transform: Transform, orders: Sequence[Order]) -> tuple[list[Filled], list[ImageError]]:
    """Write the images into their slots; unreadable ones are returned as errors and leave theirs empty."""
    filled: list[Filled] = []
    failures: list[ImageError] = []
    with RowWriter() as writer:
        for image_id, original, slot in orders:
            try:
                square = np.ascontiguousarray(transform(_decode_checked(image_id, original)))
            except ImageError as error:
                failures.append(error)
                continue
            writer.write(slot, square)
            filled.append((slot, image_id, hashlib.sha256(square.data).hexdigest()))
    return filled, failures


def _decode_checked(image_id: str, file: Path) -> np.ndarray:
    """The file as grey; `ImageError` where its bytes are not those of image_id: the store outlives the file."""
    data = read_bytes(file)
    if hashlib.sha256(data).hexdigest() != image_id:
        raise ImageError(f"{file}: has changed since it was validated; run dvc repro validate")
    return decode(data, file).grey


def _describe_failures(folder: Path, failures: Sequence[ImageError]) -> str:
    lines = sorted(str(failure) for failure in failures)
    more = [f"and {len(lines) - SHOWN_FAILURES} more"] if len(lines) > SHOWN_FAILURES else []
    text = "\n".join([*lines[:SHOWN_FAILURES], *more])
    if any(isinstance(failure, MissingImageError) for failure in failures):
        text += f"\nthe store {folder} lacks them: bring the originals or unpack their pixels (store unpack)"
    return text


def _refusal(folder: Path, error: OSError) -> str:
    return f"cannot write the store {folder}: {error.strerror or error}"


def _space(folder: Path, images: int, layout: RowLayout) -> str:
    needed, free = images * layout.nbytes + SPARE_BYTES, shutil.disk_usage(folder).free
    row = "x".join(map(str, layout.shape))
    return f"{images} images of {row} values need {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
