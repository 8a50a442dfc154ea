"""The pixel store: every image decoded and fitted once, ever, then read through memory maps.

`<root>/<transform key>/` holds segments that only grow (segments.py); store_filling.py decodes into them. It lies
outside DVC's outs and is shared by all experiments; DVC sees only a small index of the content (`build_cache`). Readers
rebuild whatever the store lacks.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip import paths
from knee_siglip.data.segments import NOBODY, clean_folder, read_segments, write_atomically
from knee_siglip.data.store_filling import fill, locked
from knee_siglip.data.transform import Transform
from knee_siglip.data.workers import available_cores
from knee_siglip.errors import UserError

logger = logging.getLogger(__name__)

TRANSFORM_FACTS = "transform.json"
"""The transform's parameters, for people and `store show`; its time is that of the last use."""


@dataclass(frozen=True)
class Counts:
    """Distinct images asked for, and how many of them had to be decoded."""

    images: int
    decoded: int


class PixelStore:
    """Pixels of one transform, by image id. Several processes may build and read it at once."""

    def __init__(self, root: Path, transform: Transform) -> None:
        self.transform = transform
        self.folder = root / transform.key
        self.refresh()

    def refresh(self) -> None:
        """Read the segments again: another process may have added some."""
        self.segments = read_segments(self.folder, self.transform.image_size)
        places = [(number, record.row) for number, segment in enumerate(self.segments) for record in segment.records]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self._hashes = [record.pixel_hash for segment in self.segments for record in segment.records]
        ids = (record.image_id for segment in self.segments for record in segment.records)
        self._numbers = {image_id: number for number, image_id in enumerate(ids)}
        self._numbers.pop(NOBODY, None)

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images that are here, in the order in which they came."""
        return list(self._numbers)

    def missing(self, image_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose pixels are not here."""
        return set(image_ids) - self._numbers.keys()

    def ensure(self, image_ids: Sequence[str], files: Sequence[Path | str], *, workers: int | None = None) -> Counts:
        """Decode what is missing, on all cores. files[i] is the original of image_ids[i].

        Whatever was finished stays when this is killed. One process builds at a time; a second one waits, then finds
        the work done.

        Raises:
            UserError: images that cannot be read or are no longer those that were validated; a full disk.
        """
        decoded = 0
        if self.missing(image_ids):
            with self.filling():
                wanted = self.missing(image_ids)
                todo = {i: Path(file) for i, file in zip(image_ids, files, strict=True) if i in wanted}
                decoded = len(todo)
                try:
                    fill(self.folder, self.transform, self.segments, list(todo.items()), workers or available_cores())
                finally:
                    self.refresh()
                    clean_folder(self.folder, self.segments, self.transform.image_size)
        self._note_use()
        return Counts(len(set(image_ids)), decoded)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """The lock, with the folder cleaned and `segments` as they are now."""
        with locked(self.folder):
            self.refresh()
            if lost := sum(segment.lost for segment in self.segments):
                logger.warning("%d damaged entries of %s are dropped and decoded again", lost, self.folder)
            clean_folder(self.folder, self.segments, self.transform.image_size)
            facts = json.dumps(self.transform.to_dict(), indent=2).encode()
            write_atomically(self.folder / TRANSFORM_FACTS, lambda file: file.write(facts))
            yield

    def locate(self, image_ids: Sequence[str]) -> np.ndarray:
        """int64 (N, 2): segment number and row of each id, for `read`. They hold until the next `refresh`."""
        return self._places[self._find(image_ids)]

    def read(self, places: np.ndarray) -> np.ndarray:
        """Pixels at places (B, 2): uint8 (B, S, S) in that order, one gather from each segment."""
        numbers = np.unique(places[:, 0])
        if len(numbers) == 1:
            return self.segments[numbers[0]].pixels[places[:, 1]]
        pixels = np.empty((len(places), *2 * [self.transform.image_size]), dtype=np.uint8)
        for number in numbers:
            positions = np.flatnonzero(places[:, 0] == number)
            pixels[positions] = self.segments[number].pixels[places[positions, 1]]
        return pixels

    def gather(self, image_ids: Sequence[str]) -> np.ndarray:
        """Pixels of the ids, repeats allowed: uint8 (B, S, S)."""
        return self.read(self.locate(image_ids))

    def pixel_hashes(self, image_ids: Sequence[str]) -> list[str]:
        """sha256 of each image's stored pixels, as noted when it was decoded."""
        return [self._hashes[number] for number in self._find(image_ids)]

    def _find(self, image_ids: Sequence[str]) -> list[int]:
        try:
            return [self._numbers[i] for i in image_ids]
        except KeyError:
            count = len(self.missing(image_ids))
            raise UserError(f"the pixel store {self.folder} lacks {count} images; run dvc repro preprocess") from None

    def _note_use(self) -> None:
        with suppress(OSError):  # a store that can only be read
            os.utime(self.folder / TRANSFORM_FACTS)


class CachedPixels:
    """The manifest's images as an array that lives on the disk: `pixels[rows]` is uint8 (B, S, S)."""

    def __init__(self, store: PixelStore, image_ids: Sequence[str]) -> None:
        self._store = store
        self._places = store.locate(image_ids)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """rows: int (B,), manifest row numbers in any order, repeats allowed. Returns uint8 (B, S, S)."""
        return self._store.read(self._places[rows])

    @property
    def transform(self) -> Transform:
        """What was done to every image."""
        return self._store.transform

    @property
    def image_size(self) -> int:
        """Side of the square in pixels."""
        return self._store.transform.image_size


def build_cache(
    manifest: pd.DataFrame,
    transform: Transform,
    index_path: Path = paths.CACHE_INDEX,
    facts_path: Path = paths.CACHE_FACTS,
) -> Counts:
    """Fill the store for every manifest row and describe its content for DVC: equal pixels, equal files."""
    store = PixelStore(paths.store_root() / "pixels", transform)
    counts = _ensure_rows(store, manifest)
    ids = manifest["image_id"].tolist()
    index = pd.DataFrame({"image_id": ids, "pixel_hash": store.pixel_hashes(ids)})
    facts = {
        "image_size": transform.image_size,
        "transform": transform.to_dict(),
        "transform_key": transform.key,
        "rows": len(manifest),
        "images": counts.images,
    }
    index_path.parent.mkdir(parents=True, exist_ok=True)
    index.to_parquet(index_path, index=False)
    facts_path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return counts


def open_pixels(manifest: pd.DataFrame, facts_path: Path = paths.CACHE_FACTS) -> CachedPixels:
    """The manifest's pixels with the transform of the preprocess stage; decodes whatever the store lacks.

    Raises:
        UserError: preprocess has not run, or was made by another version of the transform.
    """
    facts = read_cache_facts(facts_path)
    store = PixelStore(paths.store_root() / "pixels", Transform.from_dict(facts["transform"]))
    _ensure_rows(store, manifest)
    return CachedPixels(store, manifest["image_id"].tolist())


def read_cache_facts(facts_path: Path) -> dict[str, Any]:
    """cache.json of the preprocess stage; `UserError` where there is none."""
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{facts_path} does not exist; run dvc repro preprocess") from None
    return dict(facts)


def _ensure_rows(store: PixelStore, manifest: pd.DataFrame) -> Counts:
    return store.ensure(manifest["image_id"].tolist(), manifest["image_file"].tolist())
