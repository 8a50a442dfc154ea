"""The pixel store: every image decoded and fitted once, then read through memory maps.

`<root>/<transform key>/` holds a row per image (rows.py); filling.py decodes into it. The store lies outside DVC's outs
and is shared by all experiments; DVC sees only a small index of its content (`build_cache`). Readers rebuild whatever
it lacks.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.core.metrics_file import read_json, write_json
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.filling import fill
from knee_siglip.store.rows import CachedRows, RowStore
from knee_siglip.store.segments import pixel_rows
from knee_siglip.store.shards import shard_folder
from knee_siglip.tables.shards import Shard


class PixelStore(RowStore):
    """Pixels of one transform, uint8 (S, S) by image id. Several processes may build and read it at once."""

    remedy = "run dvc repro preprocess"

    def __init__(self, root: Path, transform: Transform) -> None:
        self.transform = transform
        layout = pixel_rows(transform.image_size)
        super().__init__(root / transform.key, paths.PIXELS, layout, transform.to_dict())

    def shard(self, shard: Shard) -> "PixelStore":
        """A store to fill beside this one; its pixels move into this one when that is filled next."""
        part = copy.copy(self)
        part._place(shard_folder(self.folder, shard))
        return part

    def ensure(self, image_ids: Sequence[str], files: Sequence[Path | str], *, workers: int | None = None) -> int:
        """Decode what is missing, on all cores; returns how many. files[i] is the original of image_ids[i].

        Raises:
            UserError: images that cannot be read or have changed since they were validated; a full disk.
        """

        def add(wanted: set[str]) -> None:
            todo = {i: Path(file) for i, file in zip(image_ids, files, strict=True) if i in wanted}
            fill(self.folder, self.transform, self.segments, list(todo.items()), workers)

        return self.add_missing(image_ids, add)


class CachedPixels(CachedRows):
    """The manifest's images as an array on disk: `pixels[rows]` is uint8 (B, S, S), after `transform`."""

    def __init__(
        self,
        store: PixelStore,
        image_ids: Sequence[str],
        known: np.ndarray | None = None,
        restore: Callable[[list[str]], object] | None = None,
    ) -> None:
        super().__init__(store, image_ids, known, restore)
        self.transform = store.transform

    @property
    def image_size(self) -> int:
        """Side of the square in pixels."""
        return self.transform.image_size


def build_cache(
    manifest: pd.DataFrame,
    transform: Transform,
    index_path: Path = paths.CACHE_INDEX,
    facts_path: Path = paths.CACHE_FACTS,
) -> None:
    """Fill the store for every manifest row and describe its content for DVC: equal pixels, equal files."""
    store = PixelStore(paths.store_root() / paths.PIXELS, transform)
    ids = manifest["image_id"].tolist()
    store.ensure(ids, manifest["image_file"].tolist())
    index = pd.DataFrame({"image_id": ids, "pixel_hash": store.row_hashes(ids)})
    facts = {
        "image_size": transform.image_size,
        "transform": transform.to_dict(),
        "transform_key": transform.key,
        "rows": len(manifest),
        "images": len(set(ids)),
    }
    with atomic_file(index_path) as file:
        index.to_parquet(file, index=False)
    write_json(facts_path, facts)


def fill_shard(manifest: pd.DataFrame, transform: Transform, shard: Shard) -> int:
    """Decode this shard's part of what the store lacks, beside other shards; returns how many images were decoded.

    `build_cache` then finds them. A killed shard is continued by the same command.

    Raises:
        UserError: see `PixelStore.ensure`.
    """
    store = PixelStore(paths.store_root() / paths.PIXELS, transform)
    files = dict(zip(manifest["image_id"], manifest["image_file"], strict=True))
    todo = store.missing(shard.take(files))
    ids = [image_id for image_id in files if image_id in todo]
    return store.shard(shard).ensure(ids, [files[image_id] for image_id in ids])


def open_pixels(manifest: pd.DataFrame, facts_path: Path = paths.CACHE_FACTS) -> CachedPixels:
    """The manifest's pixels with the transform of the preprocess stage; decodes whatever the store lacks.

    Raises:
        UserError: preprocess has not run, or was made by another version of the transform.
    """
    facts = read_cache_facts(facts_path)
    store = PixelStore(paths.store_root() / paths.PIXELS, Transform.from_dict(facts["transform"]))
    ids, files = manifest["image_id"].tolist(), manifest["image_file"].tolist()
    store.ensure(ids, files)

    def decode_again(damaged: list[str]) -> None:
        file_of = dict(zip(ids, files, strict=True))
        store.ensure(damaged, [file_of[image_id] for image_id in damaged], workers=1)

    return CachedPixels(store, ids, restore=decode_again)


def read_cache_facts(facts_path: Path) -> dict[str, Any]:
    """cache.json of the preprocess stage; `UserError` where there is none, or a damaged one."""
    if not (facts := read_json(facts_path)):
        raise UserError(f"{facts_path} does not exist; run dvc repro preprocess")
    if not isinstance(facts.get("transform"), dict):
        raise UserError(f"{facts_path} is damaged (no transform); remove it, then run dvc repro")
    return facts
