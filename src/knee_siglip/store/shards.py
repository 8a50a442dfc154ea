"""Parts of a store that several machines fill at once, each in a folder and under a lock of its own.

`<root>/<kind>/<key>/shard-2-of-4/` holds segments like its parent's. Whoever next fills the parent moves them into it,
which costs nothing: the files keep their names. A merge that is killed is continued by the next one.
"""

from contextlib import suppress
from pathlib import Path

from knee_siglip.core.files import flush_to_disk
from knee_siglip.store.filling import locked
from knee_siglip.store.segments import IDS, RowLayout
from knee_siglip.tables.shards import Shard

FOLDERS = "shard-*"


def shard_folder(folder: Path, shard: Shard) -> Path:
    """Where a shard of the store `folder` is filled."""
    return folder / f"shard-{shard.number}-of-{shard.count}"


def merge_shards(folder: Path, layout: RowLayout) -> None:
    """Move all shards' segments into their store, whose lock the caller holds. Waits for shards that are being filled.

    Raises:
        UserError: the system refuses.
    """
    for shard in sorted(folder.glob(FOLDERS)):
        with locked(shard):
            for log in sorted(shard.glob(f"*{IDS}")):
                rows = log.with_suffix(layout.ending)
                if rows.exists():  # else a merge was killed between the two
                    rows.replace(folder / rows.name)
                log.replace(folder / log.name)
            flush_to_disk(folder)
            for file in shard.iterdir():
                file.unlink(missing_ok=True)
        with suppress(OSError):  # somebody has started to fill it again
            shard.rmdir()
