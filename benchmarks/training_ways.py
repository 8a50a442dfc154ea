"""What is trained on, and this project's way to train on it, with a frozen image tower too."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.progress import Progress
from sizes import Sizes, our_model, parameter_count

from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.model.device import autocast_dtype, place
from knee_siglip.pairs.batches import PairDataset, Pixels, epoch_order, split_groups
from knee_siglip.params.sections import FreezeParams, TrainParams
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.manifest import read_manifest
from knee_siglip.tables.text import load_tokenizer, tokenize
from knee_siglip.training.features import frozen_features
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.throughput import Throughput, peak_memory_mb
from knee_siglip.training.trainer import Trainer

CPU = torch.device("cpu")
Kind = Literal["trial", "given", "distinct"]
"""A quarter of the pairs; all of them; all, with the row's number after each text."""


@dataclass(frozen=True)
class Work:
    """What all ways train: `pairs` (None: all) of the manifest's train split at a time, in whole batches.

    Images are as large as `sizes.image_size` says, whatever the cache's size is.
    """

    sizes: Sizes
    manifest: Path
    cache_facts: Path
    pairs: int | None
    batch_size: int

    def table(self, kind: Kind) -> pd.DataFrame:
        """Columns row (in the manifest), image_file (absolute), text."""
        manifest = read_manifest(self.manifest)
        rows = (manifest["split"] == "train").to_numpy().nonzero()[0]
        rows = rows[epoch_order(len(rows), 0, 0)][: self.pairs]
        if kind == "trial":
            rows = rows[: max(len(rows) // 4, self.batch_size)]
        rows = rows[: len(rows) // self.batch_size * self.batch_size]
        chosen = manifest.iloc[rows]
        number = [f" {row}" if kind == "distinct" else "" for row in rows]
        texts = [text + end for text, end in zip(chosen["text"], number, strict=True)]
        files = [str(Path(file).absolute()) for file in chosen["image_file"]]
        return pd.DataFrame({"row": rows, "image_file": files, "text": texts})


@dataclass(frozen=True)
class Enlarged:
    """Cached pixels at another size; what that costs is small beside an encoder at that size."""

    cached: CachedPixels
    image_size: int

    @property
    def transform(self) -> Any:
        """The cache's."""
        return self.cached.transform

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(B,) manifest rows to uint8 (B, S, S)."""
        side = (self.image_size, self.image_size)
        return np.stack([np.asarray(Image.fromarray(image).resize(side)) for image in self.cached[rows]])


@dataclass(frozen=True)
class Epoch:
    """What one came to; `waited`: seconds without a batch, None where nobody counts them."""

    seconds: float
    pairs: int
    peak_mb: float
    waited: float | None = None


class Way(Protocol):
    """One way to train. `facts`: to report."""

    facts: dict[str, Any]

    def epoch(self, kind: Kind) -> Epoch:
        """Train on all pairs once."""


class Ours:
    """`Trainer.train_round` on the pixel cache, as the train stage calls it, with its default params.

    frozen: `train.freeze.vision: all`, so that the image tower's features are read instead of the pixels. options: of
    `train` that differ from their defaults.
    """

    def __init__(
        self, work: Work, frozen: bool = False, device: torch.device = CPU, options: Mapping[str, Any] | None = None
    ) -> None:
        self.work, self.device = work, device
        torch.manual_seed(0)
        freeze = FreezeParams(vision="all" if frozen else "none")
        self.params = TrainParams(batch_size=work.batch_size, epochs=1000, freeze=freeze, **(options or {}))
        self.model = place(our_model(work.sizes, work.batch_size), device)
        freeze_towers(self.model, self.params.freeze, self.params.lora)
        manifest = read_manifest(work.manifest)
        pixels = open_pixels(manifest, work.cache_facts)
        if pixels.image_size != work.sizes.image_size:
            pixels = cast(CachedPixels, Enlarged(pixels, work.sizes.image_size))
        self.facts: dict[str, Any] = {"parameters": parameter_count(self.model)}
        self.pixels: Pixels = pixels
        if frozen:
            self.features = tempfile.TemporaryDirectory()
            rows, ids = work.table("given")["row"].to_numpy(), manifest["image_id"].tolist()
            started = time.perf_counter()
            dtype = autocast_dtype(self.params.mixed_precision, device)
            self.pixels = frozen_features(self.model, pixels, ids, rows, Path(self.features.name), dtype)
            self.facts["seconds_for_features"] = time.perf_counter() - started
        trial = self._train(self._trainer("trial"))
        self.facts |= {"seconds_of_trial": trial.seconds, "pairs_of_trial": trial.pairs}
        self.sets: dict[Kind, PairDataset] = {"given": self._pairs("given"), "distinct": self._pairs("distinct")}
        self.facts["distinct_texts_per_batch"] = self._texts_per_batch()
        self.trainer = self._trainer("given")

    def epoch(self, kind: Kind) -> Epoch:
        """The same trainer goes on with the other texts: there are as many pairs."""
        self.trainer.train_set = self.sets[kind]
        return self._train(self.trainer)

    def _train(self, trainer: Trainer) -> Epoch:
        trainer.throughput = Throughput()
        started = time.perf_counter()
        metrics = trainer.train_round(Progress(disable=True))
        seconds = time.perf_counter() - started
        trainer.history.rounds.append(metrics)
        trainer.records = []
        return Epoch(seconds, len(trainer.train_set), peak_memory_mb(), trainer.throughput.waited)

    def _trainer(self, kind: Kind) -> Trainer:
        pairs = self._pairs(kind)
        return Trainer(
            self.model,
            pairs,
            pairs,
            self.params,
            seed=0,
            device=self.device,
            log=lambda _, __: None,
            on_best=lambda _: None,
            guard=FiniteGuard(0, None, lambda _: []),
        )

    def _pairs(self, kind: Kind) -> PairDataset:
        table = self.work.table(kind)
        text_ids, texts = pd.factorize(table["text"])
        input_ids = tokenize(small_tokenizer(), texts.tolist(), self.work.sizes.positions)
        return PairDataset(self.pixels, table["row"].to_numpy(), input_ids, text_ids)

    def _texts_per_batch(self) -> float:
        pairs = self.sets["given"]
        groups = split_groups(epoch_order(len(pairs), 0, 0), self.work.batch_size)
        return float(np.mean([len(pairs.batch(group).distinct) for group in groups]))


def small_tokenizer() -> Any:
    """The shipped one, of 1,536 tokens."""
    return load_tokenizer(SMALL_FOLDER / "text")
