"""What lies in the pixel store, whether it is undamaged, and what may go. Behind `knee-siglip store`.

Nothing here is needed to train: whatever is removed is decoded again when somebody asks for it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from knee_siglip.data.segments import IDS, NOBODY, Record, clean_folder, read_segments, rewrite_log
from knee_siglip.data.store import TRANSFORM_FACTS
from knee_siglip.data.store_filling import LOCK, locked
from knee_siglip.data.transform import VERSION
from knee_siglip.data.workers import available_cores, split_chunks, work_in_chunks
from knee_siglip.errors import UsageError

ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class Shelf:
    """One transform's folder. bytes: on the disk; last_used: None where nothing tells; current: cache.json names it.

    lost: log lines that are damaged or whose pixels were cut off.
    """

    folder: Path
    transform: dict[str, Any]
    images: int
    lost: int
    bytes: int
    segments: int
    last_used: datetime | None
    current: bool

    @property
    def usable(self) -> bool:
        """Whether this knee-siglip makes and reads such pixels."""
        return self.transform.get("version") == VERSION

    @property
    def image_size(self) -> int:
        """Side of the square in pixels; 0 where unknown."""
        return int(self.transform.get("image_size", 0))


def shelves(root: Path, cache_facts: Path) -> list[Shelf]:
    """Every transform's folder under root that holds anything, the last used first."""
    current = _read_json(cache_facts).get("transform_key")
    folders = [folder for folder in root.glob("*") if folder.is_dir() and any(_content(folder))]
    found = [_examine(folder, folder.name == current) for folder in folders]
    return sorted(found, key=lambda shelf: (shelf.last_used or datetime.min, shelf.folder.name), reverse=True)


def choose_prunable(found: Sequence[Shelf], older_than: float | None, all_but_current: bool) -> list[Shelf]:
    """What may go: pixels of other versions of the transform, and what else is asked for; never the current ones.

    older_than: days since the last use. Raises `UsageError` where all but the current is to go and none is current.
    """
    if all_but_current and not any(shelf.current for shelf in found):
        raise UsageError("no cache.json here names the current transform, so --all_but_current would take everything")
    limit = datetime.now() - timedelta(days=older_than) if older_than is not None else datetime.min

    def may_go(shelf: Shelf) -> bool:
        return not shelf.usable or all_but_current or (shelf.last_used or datetime.min) < limit

    return [shelf for shelf in found if not shelf.current and may_go(shelf)]


def remove_shelf(shelf: Shelf) -> None:
    """Remove its files. Processes that read them keep their maps.

    Raises:
        UserError: another process is filling it just now; the folder cannot be written.
    """
    with locked(shelf.folder, wait=False):
        for file in sorted(
            _content(shelf.folder), key=lambda file: file.suffix != IDS
        ):  # logs first: readers see all or none
            file.unlink(missing_ok=True)


def find_damaged(shelf: Shelf) -> list[str]:
    """Ids of the images whose pixels are no longer those that were decoded: every row is hashed, on all cores."""
    rows = [
        (segment.file, record)
        for segment in read_segments(shelf.folder, shelf.image_size)
        for record in segment.records
        if record.image_id != NOBODY
    ]
    workers = available_cores()
    chunks = split_chunks(rows, ROWS_PER_CHUNK, workers)
    found = work_in_chunks(partial(_hash_rows, shelf.image_size), chunks, workers, f"Verifying {shelf.folder.name}")
    return sorted(image_id for chunk in found for image_id in chunk)


def remove_damaged(shelf: Shelf, image_ids: Sequence[str]) -> None:
    """Take images, and lost log lines, out of the store; the next run decodes them again. Their rows stay unused."""
    unwanted = set(image_ids)
    with locked(shelf.folder):
        segments = read_segments(shelf.folder, shelf.image_size)
        for segment in segments:
            if segment.lost or any(record.image_id in unwanted for record in segment.records):
                rewrite_log(segment.file, [_disown(record, unwanted) for record in segment.records])
        clean_folder(shelf.folder, read_segments(shelf.folder, shelf.image_size), shelf.image_size)


def _disown(record: Record, unwanted: set[str]) -> Record:
    return record._replace(image_id=NOBODY) if record.image_id in unwanted else record


def _hash_rows(image_size: int, rows: Sequence[tuple[Path, Record]]) -> list[str]:
    """Read through files, not maps: a sector that the disk cannot read is then an error and no dead process."""
    damaged = []
    for file, record in rows:
        try:
            with file.open("rb", buffering=0) as segment:
                square = os.pread(segment.fileno(), image_size**2, record.row * image_size**2)
        except OSError:
            square = b""
        if hashlib.sha256(square).hexdigest() != record.pixel_hash:
            damaged.append(record.image_id)
    return damaged


def _examine(folder: Path, current: bool) -> Shelf:
    transform = _read_json(folder / TRANSFORM_FACTS)
    segments = read_segments(folder, transform["image_size"]) if isinstance(transform.get("image_size"), int) else []
    stats = [file.stat() for file in _content(folder)]
    facts = folder / TRANSFORM_FACTS
    return Shelf(
        folder=folder,
        transform=transform,
        lost=sum(segment.lost for segment in segments),
        images=sum(record.image_id != NOBODY for segment in segments for record in segment.records),
        bytes=sum(stat.st_blocks * 512 for stat in stats),
        segments=len(segments),
        last_used=datetime.fromtimestamp(facts.stat().st_mtime) if facts.exists() else None,
        current=current,
    )


def _content(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name != LOCK and file.is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    """{} where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
