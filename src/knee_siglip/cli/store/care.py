"""List, verify and prune the store's pixels and features: the work of `knee-siglip store`.

Whatever is removed is made again when a run needs it.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from knee_siglip.core import paths
from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import stats_below
from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.fit.transform import VERSION
from knee_siglip.store.filling import LOCK, locked
from knee_siglip.store.rows import FACTS, FEATURE_VERSION, damaged_rows, remove_damaged
from knee_siglip.store.segments import DAMAGED_ID, IDS, RowLayout, feature_rows, pixel_rows, read_segments
from knee_siglip.store.shards import FOLDERS

ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class StoredRows:
    """One folder of rows.

    Args:
        kind: `paths.PIXELS` or `paths.FEATURES`.
        facts: its JSON file, {} where there is none.
        layout, last_used: None where unknown.
        lost: log lines that are damaged or whose rows were cut off.
        bytes: on disk.
        usable: this version of knee-siglip makes and reads such rows.
        current: cache.json names its transform.
    """

    folder: Path
    kind: str
    facts: dict[str, Any]
    layout: RowLayout | None
    images: int
    lost: int
    bytes: int
    segments: int
    last_used: datetime | None
    usable: bool
    current: bool


def list_stored(root: Path, cache_facts: Path) -> list[StoredRows]:
    """All non-empty folders of rows of the store at root, the last used first."""
    transform_key = _read_json(cache_facts).get("transform_key")
    found = [
        _examine(folder, kind, transform_key)
        for kind in (paths.PIXELS, paths.FEATURES)
        for folder in (root / kind).glob("*")
        if folder.is_dir() and any(_content(folder))
    ]
    return sorted(found, key=lambda stored: (stored.last_used or datetime.min, stored.folder.name), reverse=True)


def choose_prunable(found: Sequence[StoredRows], older_than: float | None, all_but_current: bool) -> list[StoredRows]:
    """Rows of other versions of knee-siglip, and what else is asked for; never the current ones.

    older_than: days since the last use.

    Raises:
        UsageError: `all_but_current` where none is current.
    """
    if all_but_current and not any(stored.current for stored in found):
        raise UsageError("no cache.json here names the current transform, so --all_but_current would take everything")
    limit = datetime.now() - timedelta(days=older_than) if older_than is not None else datetime.min
    return [
        stored
        for stored in found
        if not stored.current and (not stored.usable or all_but_current or (stored.last_used or datetime.min) < limit)
    ]


def remove_stored(stored: StoredRows) -> None:
    """Remove its files. Processes that read them keep their maps.

    Raises:
        UserError: another process is filling it just now; the folder cannot be written.
    """
    with ExitStack() as locks:
        for folder in (stored.folder, *stored.folder.glob(FOLDERS)):
            locks.enter_context(locked(folder, wait=0))
        # logs first: readers see all or none
        for file in sorted(_content(stored.folder), key=lambda file: file.suffix != IDS):
            file.unlink(missing_ok=True)


def find_damaged(stored: StoredRows) -> list[str]:
    """Ids of the images whose rows no longer match their hashes, on all cores."""
    if stored.layout is None:
        return []
    rows = [
        (segment.file, record)
        for segment in read_segments(stored.folder, stored.layout)
        for record in segment.records
        if record.image_id != DAMAGED_ID
    ]
    examine = partial(damaged_rows, stored.layout.nbytes)
    found = work_in_chunks(examine, rows, ROWS_PER_CHUNK, f"Verifying {stored.folder.name}")
    return sorted(record.image_id for chunk in found for _, record in chunk)


def remove_damaged_images(stored: StoredRows, image_ids: Sequence[str]) -> None:
    """Remove damaged images and lost log lines; the next run makes them again."""
    if stored.layout is not None:
        remove_damaged(stored.folder, stored.layout, image_ids)


def _examine(folder: Path, kind: str, transform_key: str | None) -> StoredRows:
    file = folder / FACTS[kind]
    facts = _read_json(file)
    if kind == paths.PIXELS:
        length, usable = facts.get("image_size"), facts.get("version") == VERSION
        current = folder.name == transform_key
    else:
        length, usable = facts.get("width"), facts.get("feature_version") == FEATURE_VERSION
        # features of another version are not current even where their pixels are: nothing reads them
        current = usable and transform_key is not None and facts.get("transform_key") == transform_key
    make_layout = pixel_rows if kind == paths.PIXELS else feature_rows
    layout = make_layout(length) if isinstance(length, int) and length > 0 else None
    segments = read_segments(folder, layout) if layout else []
    return StoredRows(
        folder=folder,
        kind=kind,
        facts=facts,
        layout=layout,
        lost=sum(segment.lost for segment in segments),
        images=sum(int((segment.index["image_id"] != DAMAGED_ID.encode()).sum()) for segment in segments),
        bytes=sum(stat.st_blocks * 512 for stat in stats_below(folder)),
        segments=len(segments),
        last_used=datetime.fromtimestamp(file.stat().st_mtime) if file.exists() else None,
        usable=usable,
        current=current,
    )


def _content(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.name != LOCK and file.is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    """{} where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
