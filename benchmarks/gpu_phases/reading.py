"""Reading the store, features of a frozen tower, and embedding for evaluation and inference."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_phases.clock import clean_slate, timed
from gpu_phases.runner import Figures
from gpu_phases.scale import Scale
from gpu_phases.training import ArrayPixels, Task, train_ours
from sizes import our_model

from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.device import embedding_dtype
from knee_siglip.model.embedding import embed_pixels
from knee_siglip.params.sections import FreezeParams
from knee_siglip.store.filling import add_rows
from knee_siglip.store.pixels import CachedPixels, PixelStore
from knee_siglip.training.features import frozen_features

FROZEN = FreezeParams(vision="all")


@dataclass
class StoredImages:
    """Noise in a real pixel store in a temporary folder, written when it is first asked for."""

    folder: Path
    image_size: int
    count: int
    seconds: float = field(default=0.0, init=False)

    @property
    def image_ids(self) -> list[str]:
        """As sha256 of image files would be."""
        return [hashlib.sha256(str(row).encode()).hexdigest() for row in range(self.count)]

    def open(self) -> CachedPixels:
        """The store's rows, in the order of `image_ids`."""
        store = PixelStore(self.folder, Transform(self.image_size, "pad", "none"))
        rng = np.random.default_rng(0)
        layout = store.layout

        def add(wanted: set[str]) -> None:
            images = (rng.integers(0, 256, layout.shape, dtype=np.uint8) for _ in wanted)
            hashed = (
                (hashlib.sha256(image.data).hexdigest(), image) for image in images
            )  # readers compare it with the row
            rows = ((image_id, *pair) for image_id, pair in zip(sorted(wanted), hashed, strict=True))
            add_rows(store.folder, store.segments, layout, len(wanted), rows)

        self.seconds += timed(lambda: store.add_missing(self.image_ids, add), torch.device("cpu"))
        return CachedPixels(store, self.image_ids)


@contextmanager
def stored_images(scale: Scale) -> Iterator[StoredImages]:
    """The store at the first training's image size, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="gpu-all-store-") as folder:
        yield StoredImages(Path(folder), scale.trainings[0][0], scale.rows)


def train_from_store(task: Task, images: StoredImages, **options: Any) -> Figures:
    """Training whose batches are gathered from the store's memory maps."""
    steps = images.count // task.batch_size
    figures = train_ours(replace(task, steps=steps), images.open(), **options)
    return figures | {"rows": steps * task.batch_size, "seconds_to_write_the_store": images.seconds}


def compute_features(task: Task, images: StoredImages) -> Figures:
    """Features of a frozen vision tower into the store, as `cache_frozen_features` makes them."""
    with clean_slate(task.device), tempfile.TemporaryDirectory(prefix="gpu-all-features-") as folder:
        with task.device:
            model = our_model(task.sizes, task.batch_size).eval()
        rows, pixels = np.arange(images.count), images.open()
        dtype = embedding_dtype("auto", task.device)

        def compute() -> None:
            frozen_features(model, pixels, images.image_ids, rows, Path(folder), dtype)

        seconds = timed(compute, task.device)
    return {"images_per_second": images.count / seconds, "images": images.count}


def train_on_features(task: Task, **options: Any) -> Figures:
    """Epochs of the text tower and the projection on features that are in memory."""
    count = task.steps * task.batch_size
    features = np.random.default_rng(0).standard_normal((count, task.sizes.vision.width), dtype=np.float32)
    return train_ours(task, ArrayPixels(features), freeze=FROZEN, **options)


def embed(task: Task) -> Figures:
    """`embed_pixels` in float32, bf16 and what the device takes by itself: images/s, and differences of the last."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (task.batch_size, task.image_size, task.image_size), dtype=np.uint8
    )
    found: Figures = {}
    embeds = {}
    with clean_slate(task.device):
        torch.manual_seed(0)
        with task.device:
            model = our_model(task.sizes, 2).eval()
        transform = Transform(task.image_size, "pad", "none")
        for precision in ("float32", "bf16", "auto"):
            dtype = embedding_dtype(precision, task.device)
            # a tokenizer is for texts alone
            checkpoint = Checkpoint(model, None, transform, {}, vision_dtype=dtype)  # type: ignore[arg-type]
            embeds[precision] = embed_pixels(checkpoint, [pixels])
            batches = [pixels] * task.steps
            seconds = timed(lambda c=checkpoint, b=batches: embed_pixels(c, b), task.device)  # type: ignore[misc]
            found[precision] = {"images_per_second": task.steps * task.batch_size / seconds, "type": str(dtype)}
    apart = np.linalg.norm(embeds["auto"] - embeds["float32"], axis=1)
    cosines = np.abs(embeds["auto"] @ embeds["float32"].T - embeds["float32"] @ embeds["float32"].T)
    return found | {"largest_distance": float(apart.max()), "largest_cosine_difference": float(cosines.max())}
