"""The feature store: a frozen vision tower's features of an image, computed once, then read as pixels are.

`<root>/<key>/` holds a row per image (rows.py); the key names the tower, its precision and the images' transform.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.store.filling import add_rows
from knee_siglip.store.rows import FEATURE_VERSION, RowStore, content_hash
from knee_siglip.store.segments import feature_rows


class FeatureStore(RowStore):
    """Features of one tower for the images of one transform, float32 (W,) by image id.

    Args:
        facts: JSON values that name all that the features depend on; `store prune` looks for `transform_key`.
        width: W.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], width: int) -> None:
        described = {**facts, "feature_version": FEATURE_VERSION, "width": width}
        super().__init__(root / content_hash(described), paths.FEATURES, feature_rows(width), described)

    def ensure(self, image_ids: Sequence[str], compute: Callable[[list[str]], Iterable[np.ndarray]]) -> int:
        """Have `compute` make the missing features; returns how many. See `add_missing`.

        compute: maps distinct ids to their features in that order, in blocks float32 (b, W). They are committed as they
            come, so a kill loses little.

        Raises:
            UserError: features that are not finite, after all before them are stored; a full disk.
        """

        def add(wanted: set[str]) -> None:
            todo = [image_id for image_id in dict.fromkeys(image_ids) if image_id in wanted]
            add_rows(self.folder, self.segments, self.layout, len(todo), self._hashed(todo, compute(todo)))

        return self.add_missing(image_ids, add)

    def _hashed(self, image_ids: list[str], blocks: Iterable[np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
        for image_id, features in zip(image_ids, self._rows(blocks), strict=True):
            if not np.isfinite(features).all():
                raise UserError(
                    f"image {image_id}: the vision tower's features of it are not finite, so they are not stored; "
                    "compute with a higher precision, or look at the image and the tower's weights"
                )
            yield image_id, hashlib.sha256(features.data).hexdigest(), features

    def _rows(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            assert (block.dtype, block.shape[1:]) == (np.float32, self.layout.shape), (block.dtype, block.shape)
            yield from np.ascontiguousarray(block, dtype=self.layout.dtype)
