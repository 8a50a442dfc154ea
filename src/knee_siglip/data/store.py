"""The pixel store: every image decoded and fitted once, ever, then read through memory maps.

`<root>/<transform key>/` holds append-only segments (segments.py). It lies outside DVC's outs and is shared by all
experiments; DVC sees only a small index of the content (`build_cache`). Readers rebuild whatever the store lacks.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from knee_siglip import paths
from knee_siglip.data.images import ImageError, decode, read_bytes
from knee_siglip.data.segments import read_segments, remove_remains, write_atomically, write_segment
from knee_siglip.data.transform import Transform
from knee_siglip.data.workers import available_cores, split_chunks, work_in_chunks
from knee_siglip.errors import UserError

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 2**20
"""Pixels of one segment: what a killed run loses per core, and what a worker holds in memory."""

SHOWN_FAILURES = 5


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
        """Read the segments' ids again: another process may have added some."""
        self._segments, self._damaged = read_segments(self.folder, self.transform.image_size)
        self._places = {
            image_id: (number, row)
            for number, segment in enumerate(self._segments)
            for row, image_id in enumerate(segment.image_ids)
        }

    def missing(self, image_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose pixels are not here, or lie in a damaged segment."""
        return set(image_ids) - self._places.keys()

    def ensure(self, image_ids: Sequence[str], files: Sequence[Path], *, workers: int | None = None) -> Counts:
        """Decode what is missing, on all cores. files[i] is the original of image_ids[i].

        Whatever was finished stays when this is killed. One process builds at a time; a second one waits, then finds
        the work done.

        Raises:
            UserError: images that cannot be read or are no longer those that were validated; a full disk.
        """
        images = len(set(image_ids))
        if not self.missing(image_ids):
            return Counts(images, decoded=0)
        with self._building():
            self.refresh()
            wanted = self.missing(image_ids)
            todo = list({i: file for i, file in zip(image_ids, files, strict=True) if i in wanted}.items())
            failures = self._build(todo, workers or available_cores())
            self.refresh()
        if failures:
            more = f"\nand {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
            raise UserError("\n".join(failures[:SHOWN_FAILURES]) + more)
        return Counts(images, decoded=len(todo))

    def locate(self, image_ids: Sequence[str]) -> np.ndarray:
        """int64 (N, 2): segment number and row of each id, for `read`. They hold until the next `refresh`."""
        if absent := self.missing(image_ids):
            raise UserError(f"the pixel store {self.folder} lacks {len(absent)} images; run dvc repro preprocess")
        return np.array([self._places[i] for i in image_ids], dtype=np.int64).reshape(-1, 2)

    def read(self, places: np.ndarray) -> np.ndarray:
        """Pixels at places (B, 2): uint8 (B, S, S) in that order, each segment read once and from front to back."""
        side = self.transform.image_size
        pixels = np.empty((len(places), side, side), dtype=np.uint8)
        order = np.lexsort((places[:, 1], places[:, 0]))
        numbers, starts = np.unique(places[order, 0], return_index=True)
        for number, positions in zip(numbers, np.split(order, starts[1:]), strict=False):
            pixels[positions] = self._segments[number].pixels[places[positions, 1]]
        return pixels

    def gather(self, image_ids: Sequence[str]) -> np.ndarray:
        """Pixels of the ids, repeats allowed: uint8 (B, S, S)."""
        return self.read(self.locate(image_ids))

    def pixel_hashes(self, image_ids: Sequence[str]) -> list[str]:
        """sha256 of each image's stored pixels, as noted when it was decoded."""
        return [self._segments[number].pixel_hashes[row] for number, row in self.locate(image_ids)]

    def _build(self, todo: Sequence[tuple[str, Path]], workers: int) -> list[str]:
        """Decode (image_id, file) pairs into new segments; returns the failures as sentences."""
        if self._damaged:
            logger.warning("%d damaged segments of %s are decoded again", len(self._damaged), self.folder)
        remove_remains(self.folder, self._damaged)
        if not todo:
            return []
        facts = json.dumps(self.transform.to_dict(), indent=2).encode()
        write_atomically(self.folder / "transform.json", lambda file: file.write(facts))
        limit = max(1, SEGMENT_BYTES // self.transform.image_size**2)
        build = partial(_build_segment, self.folder, self.transform)
        results = work_in_chunks(build, split_chunks(todo, limit, workers), workers, "Decoding images")
        return sorted(failure for failures in results for failure in failures)

    @contextmanager
    def _building(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("another process fills %s: waiting for it", self.folder)
                lock.acquire()
        except OSError as error:
            raise UserError(f"cannot write the pixel store {self.folder}: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()


def _build_segment(folder: Path, transform: Transform, chunk: Sequence[tuple[str, Path]]) -> list[str]:
    """Decode (image_id, file) pairs into one segment; unreadable ones are left out and returned as sentences."""
    pixels = np.empty((len(chunk), transform.image_size, transform.image_size), dtype=np.uint8)
    image_ids: list[str] = []
    hashes: list[str] = []
    failures: list[str] = []
    for image_id, file in chunk:
        try:
            square = pixels[len(image_ids)]
            square[:] = transform(_decode_checked(image_id, file))
        except ImageError as error:
            failures.append(str(error))
            continue
        image_ids.append(image_id)
        hashes.append(hashlib.sha256(square.data).hexdigest())
    if image_ids:
        write_segment(folder, pixels[: len(image_ids)], image_ids, hashes)
    return failures


def _decode_checked(image_id: str, file: Path) -> np.ndarray:
    """The file as grey; `ImageError` where its bytes are not those of image_id: the store outlives the file."""
    data = read_bytes(file)
    if hashlib.sha256(data).hexdigest() != image_id:
        raise ImageError(f"{file}: has changed since it was validated; run dvc repro validate")
    return decode(data, file).grey


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
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{facts_path} does not exist; run dvc repro preprocess") from None
    store = PixelStore(paths.store_root() / "pixels", Transform.from_dict(facts["transform"]))
    _ensure_rows(store, manifest)
    return CachedPixels(store, manifest["image_id"].tolist())


def _ensure_rows(store: PixelStore, manifest: pd.DataFrame) -> Counts:
    files = [Path(name) for name in manifest["image_file"]]
    return store.ensure(manifest["image_id"].tolist(), files)
