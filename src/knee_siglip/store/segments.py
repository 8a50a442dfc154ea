"""Segments of the store: what is committed is whole, whatever kills the writer.

A segment is `<name>.pixels` or `<name>.features` (rows of one layout, nothing else) and `<name>.ids`, its log of
committed rows: a line `row image_id row_hash crc32` of fixed length for each. A row counts from the moment its line is
there, and its line is written after the row has reached the disk. Both files only grow; committed rows never change, so
that readers may keep their memory maps while others write.
"""

import errno
import math
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import PARTIAL, atomic_file, flush_to_disk

PIXELS, FEATURES, IDS = ".pixels", ".features", ".ids"

SEGMENT_BYTES = 2**30
"""Few large segments: a batch is gathered from few maps, and few files are kept open."""

DAMAGED_ID = "0" * 64
"""Id of a row that was found damaged: never given out, and never used again while a reader may hold it."""

_ROW, _HASH, _CRC = 8, 64, 8
_BODY = _ROW + 1 + _HASH + 1 + _HASH
_LINE = _BODY + 1 + _CRC + 1
_LINES = np.dtype(
    {
        "names": ["row", "image_id", "row_hash", "check"],
        "formats": [f"S{_ROW}", f"S{_HASH}", f"S{_HASH}", f"S{_LINE - _BODY}"],
        "offsets": [0, _ROW + 1, _ROW + 1 + _HASH + 1, _BODY],
        "itemsize": _LINE,
    }
)


@dataclass(frozen=True)
class RowLayout:
    """Shape and type of one image's row. `ending`: suffix of the files that hold such rows."""

    shape: tuple[int, ...]
    dtype: str
    ending: str

    @property
    def nbytes(self) -> int:
        """Length of a row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def pixel_rows(image_size: int) -> RowLayout:
    """Grey squares, uint8 (S, S)."""
    return RowLayout((image_size, image_size), "|u1", PIXELS)


def feature_rows(width: int) -> RowLayout:
    """Vectors, little-endian float32 (W,)."""
    return RowLayout((width,), "<f4", FEATURES)


class Slot(NamedTuple):
    """Where an image's row goes: a segment's file and the row in it."""

    file: Path
    row: int


class Record(NamedTuple):
    """A committed row: sha256 of the image file and of the row's bytes."""

    row: int
    image_id: str
    row_hash: str


RECORDS = np.dtype([("row", np.int64), ("image_id", f"S{_HASH}"), ("row_hash", f"S{_HASH}")])
"""`Record`s as an array: 136 bytes each, where Python's objects take four times as much in every process."""


@dataclass(frozen=True)
class Segment:
    """`rows`: memory-mapped (rows, *shape); `index`: (R,) RECORDS; `lost`: damaged lines, or ones without rows."""

    file: Path
    rows: np.ndarray
    index: np.ndarray
    lost: int

    @property
    def records(self) -> Iterator[Record]:
        """The committed rows, one by one."""
        for row, image_id, row_hash in self.index.tolist():
            yield Record(row, image_id.decode(), row_hash.decode())


def read_segments(folder: Path, layout: RowLayout) -> list[Segment]:
    """All segments of a folder, by name. Safe while others write or remove segments.

    Raises:
        UserError: the system does not let them be read.
    """
    try:
        found = [_read_segment(ids_file, layout) for ids_file in sorted(folder.glob(f"*{IDS}"))]
    except OSError as error:
        raise UserError(f"cannot read the store {folder}: {error.strerror or error}") from None
    return [segment for segment in found if segment is not None]


def free_slots(folder: Path, segments: Sequence[Segment], layout: RowLayout, count: int) -> list[Slot]:
    """Slots for `count` images: rows never committed in the segments there are, then new segments."""
    capacity = max(1, SEGMENT_BYTES // layout.nbytes)
    slots: list[Slot] = []
    for segment in segments:
        unused = np.ones(min(capacity, len(segment.rows) + count), dtype=bool)
        rows = segment.index["row"]
        unused[rows[rows < len(unused)]] = False
        slots += [Slot(segment.file, row) for row in np.flatnonzero(unused)[: count - len(slots)].tolist()]
    while len(slots) < count:
        file = folder / f"{uuid.uuid4().hex}{layout.ending}"
        slots += [Slot(file, row) for row in range(min(capacity, count - len(slots)))]
    return slots


class RowWriter(ExitStack):
    """Context that writes uncommitted rows into segments. Raises `OSError`."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[Path, int] = {}

    def write(self, slot: Slot, row: np.ndarray) -> None:
        """Put a row of the segment's layout, C order, into its slot."""
        if slot.file not in self._descriptors:
            descriptor = os.open(slot.file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._descriptors[slot.file] = descriptor
            self.callback(os.close, descriptor)
        data, offset = row.data.cast("B"), slot.row * row.nbytes
        while data:  # a filling disk takes a part of it first, and gives its reason only when asked again
            written = os.pwrite(self._descriptors[slot.file], data, offset)
            data, offset = data[written:], offset + written


def commit(file: Path, records: Iterable[Record]) -> None:
    """Flush a segment's rows to disk, then append them to its log. Raises `OSError`."""
    flush_to_disk(file)
    log = file.with_suffix(IDS)
    is_new = not log.exists()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    before = os.fstat(descriptor).st_size
    try:
        data = _to_lines(records)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)
    if is_new:
        flush_to_disk(file.parent)


def rewrite_log(file: Path, records: Iterable[Record]) -> None:
    """Replace a segment's log in one step."""
    with atomic_file(file.with_suffix(IDS)) as log:
        log.write(_to_lines(records))


def clean_folder(folder: Path, segments: Sequence[Segment], layout: RowLayout) -> None:
    """Remove what killed writers and damage left. Needs the folder's lock; safe for readers."""
    kept = set()
    for segment in segments:
        if len(segment.index):
            kept |= {segment.file, segment.file.with_suffix(IDS)}
            if segment.lost:
                rewrite_log(segment.file, segment.records)
            end = len(segment.rows) * layout.nbytes
            if segment.file.stat().st_size > end:
                os.truncate(segment.file, end)  # rows that were never committed: readers map committed ones only
    for file in folder.iterdir():
        if file.suffix in (layout.ending, IDS, PARTIAL) and file not in kept:
            file.unlink(missing_ok=True)


def _read_segment(ids_file: Path, layout: RowLayout) -> Segment | None:
    """A segment, or None where it has just been removed."""
    file = ids_file.with_suffix(layout.ending)
    try:
        content = ids_file.read_bytes()
        whole = file.stat().st_size // layout.nbytes if file.exists() else 0
        index = _from_lines(content)
        index = index[index["row"] < whole]
        rows = np.empty((0, *layout.shape), dtype=layout.dtype)
        if len(index):
            shape = int(index["row"].max()) + 1, *layout.shape
            rows = np.asarray(np.memmap(file, layout.dtype, "r", shape=shape))  # indexing np.memmap itself is slower
    except FileNotFoundError:
        return None
    return Segment(file, rows, index, lost=math.ceil(len(content) / _LINE) - len(index))


def _to_lines(records: Iterable[Record]) -> bytes:
    bodies = (f"{record.row:0{_ROW}d} {record.image_id} {record.row_hash}".encode() for record in records)
    return b"".join(b"%b %08x\n" % (body, zlib.crc32(body)) for body in bodies)


def _from_lines(content: bytes) -> np.ndarray:
    """(R,) RECORDS of the undamaged lines, without a torn last one that a kill left or that is being written."""
    whole = len(content) // _LINE
    lines = np.frombuffer(content, dtype=_LINES, count=whole)
    checks = np.array([zlib.crc32(content[at : at + _BODY]) for at in range(0, whole * _LINE, _LINE)], dtype=np.uint32)
    noted = np.char.mod(b" %08x\n", checks).astype(lines["check"].dtype) if whole else lines["check"]
    lines = lines[lines["check"] == noted]
    index = np.empty(len(lines), dtype=RECORDS)
    index["row"] = lines["row"].astype(np.int64)
    for name in ("image_id", "row_hash"):
        index[name] = lines[name]
    return index
