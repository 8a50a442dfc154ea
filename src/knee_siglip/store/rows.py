"""One folder of the store: a row per image, by image id. Pixels and vision features lie in such folders.

`<root>/<kind>/<key>/` holds segments that only grow (segments.py) and a JSON file that describes them. Equal keys,
equal rows: whatever would give other rows has another folder. A run checks each row's hash when it first reads it, so
a flipped bit trains nothing.
"""

import copy
import hashlib
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.core.threads import available_memory
from knee_siglip.store.filling import locked
from knee_siglip.store.segments import (
    DAMAGED_ID,
    RECORDS,
    Record,
    RowLayout,
    clean_folder,
    read_segments,
    rewrite_log,
)
from knee_siglip.store.shards import merge_shards

logger = logging.getLogger(__name__)

FACTS = {paths.PIXELS: "transform.json", paths.FEATURES: "features.json"}
"""What the rows are, for people and `store show`; its time is that of the last use."""

READERS = 32
"""Rows that are awaited at once where they may not be in memory."""

MEMORY_SHARE = 0.5
"""Of the memory: rows that take no more stay there once they are read."""

FEATURE_VERSION = 1
"""Version of everything between pixels and features. Raise it when the same pixels and weights would give others."""


class RowStore:
    """Rows of one folder. Several processes may fill and read it at once.

    Args:
        kind: `paths.PIXELS` or `paths.FEATURES`.
        facts: what the folder's JSON file says.
    """

    remedy = "run the command again"
    """What brings rows that are not here."""

    def __init__(self, folder: Path, kind: str, layout: RowLayout, facts: Mapping[str, Any]) -> None:
        self.layout = layout
        self._kind, self._facts = kind, facts
        self._place(folder)

    def _place(self, folder: Path) -> None:
        """Read and fill this folder."""
        self.folder = folder
        self._facts_file = folder / FACTS[self._kind]
        self.refresh()

    def refresh(self) -> None:
        """Read the segments again: another process may have added some."""
        self.segments = read_segments(self.folder, self.layout)
        index = np.concatenate([np.empty(0, dtype=RECORDS), *(segment.index for segment in self.segments)])
        numbers = np.repeat(np.arange(len(self.segments)), [len(segment.index) for segment in self.segments])
        sound = index["image_id"] != DAMAGED_ID.encode()
        self._ids, self._hashes = index["image_id"][sound], index["row_hash"][sound]
        self._places = np.stack([numbers, index["row"]], axis=1)[sound]
        self._by_id = np.argsort(self._ids, kind="stable")

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images in the store, in order of arrival."""
        return [image_id.decode() for image_id in dict.fromkeys(self._ids.tolist())]

    def missing(self, image_ids: Sequence[str]) -> set[str]:
        """The ids whose rows are not in the store."""
        return {image_ids[at] for at in np.flatnonzero(self._find(image_ids) < 0).tolist()}

    def add_missing(self, image_ids: Sequence[str], add: Callable[[set[str]], None]) -> int:
        """Have `add` bring the missing ids under the folder's lock; returns how many.

        What was committed survives a kill. A second process waits, then finds the work done and does not call `add`.
        """
        added = 0
        if self.missing(image_ids):
            with self.filling():
                wanted = self.missing(image_ids)
                added = len(wanted)
                try:
                    if wanted:
                        add(wanted)
                finally:
                    self.refresh()
                    clean_folder(self.folder, self.segments, self.layout)
        with suppress(OSError):  # a read-only store
            os.utime(self._facts_file)  # notes the use
        return added

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Lock, merge and clean the folder, with `segments` up to date."""
        with locked(self.folder):
            merge_shards(self.folder, self.layout)
            self.refresh()
            if lost := sum(segment.lost for segment in self.segments):
                logger.warning("%d damaged entries of %s are dropped and made again", lost, self.folder)
            clean_folder(self.folder, self.segments, self.layout)
            with atomic_file(self._facts_file) as file:
                file.write(json.dumps(self._facts, indent=2).encode())
            yield

    def locate(self, image_ids: Sequence[str]) -> np.ndarray:
        """int64 (N, 2): segment number and row of each id, for `read`; valid until the next `refresh`."""
        return self._places[self.numbers(image_ids)]

    def read(self, places: np.ndarray) -> np.ndarray:
        """Rows at places (B, 2): (B, *shape) in that order, one gather from each segment."""
        numbers = np.unique(places[:, 0])
        if len(numbers) == 1:
            return self.segments[numbers[0]].rows[places[:, 1]]
        rows = np.empty((len(places), *self.layout.shape), dtype=self.layout.dtype)
        for number in numbers:
            positions = np.flatnonzero(places[:, 0] == number)
            rows[positions] = self.segments[number].rows[places[positions, 1]]
        return rows

    def await_rows(self, places: np.ndarray) -> None:
        """Have the rows at places (B, 2) in memory: many are asked for at once, since a disk may be slow to answer."""
        deque(_readers(os.getpid()).map(self._copy_row, *places.T.tolist()), maxlen=0)

    def _copy_row(self, number: int, row: int) -> None:
        self.segments[number].rows[row].copy()  # a copy lets other threads run while it waits, a sum of some bytes not

    def gather(self, image_ids: Sequence[str]) -> np.ndarray:
        """Rows of the ids, repeats allowed: (B, *shape)."""
        return self.read(self.locate(image_ids))

    def row_hashes(self, image_ids: Sequence[str]) -> list[str]:
        """sha256 of each image's row, as noted when it was made."""
        return [row_hash.decode() for row_hash in self._hashes[self.numbers(image_ids)].tolist()]

    def read_numbers(self, numbers: np.ndarray, are_in_memory: bool = True) -> np.ndarray:
        """Rows of the records `numbers` (B,): (B, *shape)."""
        places = self._places[numbers]
        if not are_in_memory:
            self.await_rows(places)
        return self.read(places)

    def sound(self, numbers: np.ndarray, rows: Iterable[np.ndarray]) -> np.ndarray:
        """(B,) whether B rows are those whose hashes the records `numbers` (B,) hold."""
        hashes = self._hashes[numbers].tolist()
        found = (hashlib.sha256(row.data).hexdigest().encode() for row in rows)
        return np.fromiter((known == new for known, new in zip(hashes, found, strict=True)), bool, len(numbers))

    def _find(self, image_ids: Sequence[str]) -> np.ndarray:
        """(N,) number of each id's last record, -1 where there is none."""
        asked = np.array(image_ids, dtype=np.bytes_)
        if not len(self._ids):
            return np.full(len(asked), -1)
        places = np.searchsorted(self._ids, asked, side="right", sorter=self._by_id) - 1
        numbers = self._by_id[places]
        return np.where(self._ids[numbers] == asked, numbers, -1)

    def numbers(self, image_ids: Sequence[str]) -> np.ndarray:
        """(N,) number of each id's record; valid until the next `refresh`."""
        numbers = self._find(image_ids)
        if len(numbers) and numbers.min() < 0:
            count = len(self.missing(image_ids))
            raise UserError(f"the store {self.folder} lacks {count} images; {self.remedy}")
        return numbers


class CachedRows:
    """The manifest's images as an array on disk: `cached[rows]` is (B, *shape). Each row is checked when first read.

    Args:
        image_ids: of each manifest row.
        known: manifest rows that may be asked for; None: all.
        restore: makes the rows of these ids that the store lacks, so that damaged ones are made again.
    """

    def __init__(
        self,
        store: RowStore,
        image_ids: Sequence[str],
        known: np.ndarray | None = None,
        restore: Callable[[list[str]], object] | None = None,
    ) -> None:
        self._store, self._image_ids, self._restore = store, image_ids, restore
        self._known = np.arange(len(image_ids)) if known is None else known
        self._fits_in_memory = len(self._known) * store.layout.nbytes < MEMORY_SHARE * available_memory()
        self._is_checked = np.zeros(len(image_ids), dtype=bool)
        self._restoring = threading.Lock()
        self._view = self._open()

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """rows: int (B,), manifest row numbers in any order, repeats allowed. Returns (B, *shape).

        Raises:
            UserError: damaged rows that cannot be made again.
        """
        values, damaged = self._read(rows)
        if len(damaged):
            with self._restoring:
                self._make_again(sorted({self._image_ids[row] for row in damaged.tolist()}))
            values, damaged = self._read(rows)
        if len(damaged):
            raise UserError(
                f"the store {self._store.folder}: image {self._image_ids[damaged[0]]} is damaged again right after it "
                "was made; check the disk and the memory of this machine"
            )
        return values

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, *shape), and the rows among them that are damaged."""
        store, numbers = self._view
        wanted = numbers[rows]
        assert (wanted >= 0).all(), "rows that were not asked for when this was opened"
        new = np.flatnonzero(~self._is_checked[rows])
        values = store.read_numbers(wanted, are_in_memory=self._fits_in_memory and not len(new))
        sound = store.sound(wanted[new], (values[at] for at in new))  # views: a copy costs more than its hash
        self._is_checked[rows[new[sound]]] = True
        return values, rows[new[~sound]]

    def _make_again(self, image_ids: list[str]) -> None:
        removed = remove_damaged(self._store.folder, self._store.layout, image_ids)
        if removed:  # else another process has just made them again
            logger.warning("%s: %d damaged images are made again", self._store.folder, len(removed))
        self._store.refresh()
        if self._restore is not None:
            self._restore(image_ids)
        self._view = self._open()

    def _open(self) -> tuple[RowStore, np.ndarray]:
        """The store as it is now, which no refresh changes, and the number of each manifest row's record, -1: none."""
        numbers = np.full(len(self._image_ids), -1)
        numbers[self._known] = self._store.numbers([self._image_ids[row] for row in self._known.tolist()])
        return copy.copy(self._store), numbers


def damaged_rows(nbytes: int, rows: Sequence[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    """The rows whose bytes do not have the hashes of their records.

    They are read through files, not maps: an unreadable sector is then an error instead of a dead process.
    """
    damaged = []
    for file, record in rows:
        try:
            with file.open("rb", buffering=0) as segment:
                data = os.pread(segment.fileno(), nbytes, record.row * nbytes)
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != record.row_hash:
            damaged.append((file, record))
    return damaged


def remove_damaged(folder: Path, layout: RowLayout, image_ids: Sequence[str]) -> set[str]:
    """Disown the damaged ones of these images' rows, and lost log lines; returns the ids. Their places stay unused."""
    suspected, removed = set(image_ids), set()
    with locked(folder):
        for segment in read_segments(folder, layout):
            suspects = [(segment.file, record) for record in segment.records if record.image_id in suspected]
            damaged = {record for _, record in damaged_rows(layout.nbytes, suspects)}
            removed |= {record.image_id for record in damaged}
            if segment.lost or damaged:
                records = (r._replace(image_id=DAMAGED_ID) if r in damaged else r for r in segment.records)
                rewrite_log(segment.file, records)
        clean_folder(folder, read_segments(folder, layout), layout)
    return removed


@cache
def _readers(process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not live on in a fork."""
    return ThreadPoolExecutor(READERS, f"rows of {process}")


def content_hash(values: Mapping[str, Any]) -> str:
    """Names a folder by what its rows depend on (JSON values)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
