"""Training on synthetic pairs in memory: this project's `Trainer`, open_clip's loop, and a plain one.

Each function trains some steps that are not timed, then those that are, and leaves the device as it found it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gpu_phases.clock import clean_slate, release, timed
from gpu_phases.runner import Figures
from open_clip_training import OpenClipTraining
from peers import open_clip
from rich.progress import Progress
from sizes import Sizes, our_model
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import PairDataset, Pixels, normalise
from knee_siglip.pairs.prefetch import prefetch_batches
from knee_siglip.params.sections import TrainParams
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.throughput import Throughput, peak_memory_mb
from knee_siglip.training.trainer import Trainer

READY_BATCHES = 2
"""Different ones that the peers are given in turn."""


@dataclass(frozen=True)
class Task:
    """`steps` timed steps of `batch_size` pairs on `device`, images of `image_size` pixels a side."""

    sizes: Sizes
    image_size: int
    batch_size: int
    steps: int
    device: torch.device


class ArrayPixels:
    """Grey pixels in memory, indexed as the cache is."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def synthetic_pairs(task: Task, count: int, pixels: Pixels | None = None) -> PairDataset:
    """Random tokens with `pixels` or noise; no two texts are equal, since the peers would encode equal ones again."""
    rng = np.random.default_rng(0)
    if pixels is None:
        side = task.image_size
        pixels = ArrayPixels(rng.integers(0, 256, (count, side, side), dtype=np.uint8))
    tokens = torch.from_numpy(rng.integers(2, task.sizes.vocabulary, (count, task.sizes.positions)))
    return PairDataset(pixels, np.arange(count), tokens, np.arange(count))


def build_trainer(task: Task, params: TrainParams, count: int, pixels: Pixels | None = None) -> Trainer:
    """This project's, with random weights, over `count` pairs."""
    torch.manual_seed(0)
    with task.device:  # random numbers of this size take seconds on a CPU
        model = our_model(task.sizes, params.batch_size * params.gradient_accumulation_steps)
    freeze_towers(model, params.freeze)
    pairs = synthetic_pairs(task, count, pixels)
    return Trainer(
        model,
        pairs,
        pairs,
        params,
        seed=0,
        device=task.device,
        log=lambda _, __: None,
        on_best=lambda _: None,
        guard=FiniteGuard(max_skipped=3, dump=None, describe=lambda _: []),
    )


def epoch_of(trainer: Trainer) -> dict[str, float]:
    """One epoch as `Trainer.fit` trains it, without validation; its speed is in `trainer.throughput` afterwards."""
    trainer.throughput = Throughput(trainer.throughput.peak)
    metrics = trainer.train_round(Progress(disable=True))
    trainer.history.rounds.append(metrics)
    trainer.records = []
    return metrics


def train_ours(task: Task, pixels: Pixels | None = None, **options: Any) -> Figures:
    """`Trainer.train_round` with the default params but for `options`: an epoch that warms up, and one that counts."""
    params = TrainParams(batch_size=task.batch_size, epochs=2, learning_rate=1e-4, **options)
    with clean_slate(task.device):
        trainer = build_trainer(task, params, task.steps * task.batch_size, pixels)
        started = time.perf_counter()
        epoch_of(trainer)
        first = time.perf_counter() - started
        metrics = epoch_of(trainer)
        torch.compiler.reset()
        return trainer.throughput.metrics() | {
            "step_ms": 1000 * trainer.throughput.seconds / task.steps,
            "warm_up_seconds": first - trainer.throughput.seconds,
            "batch_size": task.batch_size,
            "micro_batch_size": trainer.gradient_cache.micro_batch_size,
            "loss": metrics["train.loss"],
        }


class ReadyBatches:
    """Batches that are on the device already, as open_clip's `DataInfo` and its loader at once."""

    def __init__(self, task: Task, image_size: int, steps: int) -> None:
        self.num_batches, self.num_samples = steps, steps * task.batch_size
        self.dataloader = self
        shape = (task.batch_size, 3, image_size, image_size)
        texts = (task.batch_size, task.sizes.positions)
        self.batches = [
            (
                torch.randn(shape, device=task.device),
                torch.randint(2, task.sizes.vocabulary, texts, device=task.device),
            )
            for _ in range(min(READY_BATCHES, steps))
        ]

    def set_epoch(self, epoch: int) -> None:
        """Nothing is drawn."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.num_batches):
            yield self.batches[step % len(self.batches)]


class OurBatches(ReadyBatches):
    """The same batches on this project's data path: gathered and pinned by a thread, normalised on the device."""

    def __init__(self, task: Task, image_size: int, steps: int) -> None:
        self.num_batches, self.num_samples = steps, steps * task.batch_size
        self.dataloader, self.task = self, replace(task, image_size=image_size)
        self.pairs = synthetic_pairs(self.task, self.num_samples)
        self.mean = torch.full((1, 3, 1, 1), 0.53, device=task.device)
        self.std = torch.full((1, 3, 1, 1), 0.26, device=task.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        groups = np.split(np.arange(self.num_samples), self.num_batches)
        with closing(prefetch_batches(self.pairs.batch, groups, self.task.device, "auto")) as batches:
            for batch in batches:
                yield normalise(batch.pixels, self.mean, self.std), batch.input_ids


def train_open_clip(task: Task, image_size: int, changes: dict[str, Any], data: type[ReadyBatches]) -> Figures:
    """open_clip's ViT-B-16-SigLIP (but for `changes` of its config) at `image_size`, by its own loop in bf16."""
    with clean_slate(task.device):
        torch.backends.cudnn.benchmark = True  # as its main does
        model = open_clip().create_model(
            "ViT-B-16-SigLIP", force_image_size=image_size, device=task.device, output_dict=True, **changes
        )
        training = OpenClipTraining(model, task.batch_size, task.device, "amp_bf16")
        training.epoch(data(task, image_size, 2))
        batches = data(task, image_size, task.steps)
        seconds = timed(lambda: training.epoch(batches), task.device)
        return _plain_figures(task, seconds) | {"image_size": image_size}


def train_plain(task: Task, half: bool) -> Figures:
    """The same towers as transformers runs them, loss and loop in the plainest way; fp32, or fp16 with a scaler."""
    with clean_slate(task.device):
        with task.device:
            model = with_library_towers(our_model(task.sizes, task.batch_size)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
        scaler = torch.amp.GradScaler(task.device.type, enabled=half)
        images = (task.batch_size, 3, task.image_size, task.image_size)
        texts = (task.batch_size, task.sizes.positions)
        batches = [
            (torch.randn(images), torch.randint(2, task.sizes.vocabulary, texts))
            for _ in range(min(READY_BATCHES, task.steps))
        ]

        def run(steps: int) -> None:
            for step in range(steps):
                pixel_values, input_ids = (part.to(task.device) for part in batches[step % len(batches)])
                optimizer.zero_grad()
                with torch.autocast(task.device.type, dtype=torch.float16, enabled=half):
                    loss = plain_loss(model, pixel_values, input_ids)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                loss.item()  # for the progress bar

        run(2)
        return _plain_figures(task, timed(lambda: run(task.steps), task.device))


def with_library_towers(model: KneeRadDinoSigLIPModel) -> KneeRadDinoSigLIPModel:
    """The model with the towers that transformers computes, of the same sizes and with weights of their own."""
    from transformers import Dinov2Config, Dinov2Model, SiglipTextConfig, SiglipTextModel

    vision, text = (tower.config.to_dict() for tower in (model.vision_model, model.text_model))
    model.vision_model = Dinov2Model(Dinov2Config(**vision | {"attn_implementation": "sdpa"}))
    model.text_model = SiglipTextModel(SiglipTextConfig(**text | {"attn_implementation": "sdpa"}))
    return model


def plain_loss(model: KneeRadDinoSigLIPModel, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
    """(B, 3, S, S) and (B, L) to the () sigmoid loss of the matrix of logits."""
    images = model.visual_projection(model.vision_model(pixel_values=pixel_values).pooler_output)
    texts = model.text_model(input_ids=input_ids).pooler_output
    cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    logits = cosines * model.logit_scale.exp() + model.logit_bias
    labels = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def as_many_as_fit(train: Callable[[Task], Figures], task: Task) -> Figures:
    """`train`, with half the batch wherever the device's memory ends: so the peers are not left out."""
    while True:
        try:
            return train(task)
        except torch.OutOfMemoryError:
            if task.batch_size == 1:
                raise
        # outside the handler: its traceback holds what filled the memory
        release(task.device)
        task = replace(task, batch_size=task.batch_size // 2)


def _plain_figures(task: Task, seconds: float) -> Figures:
    return {
        "pairs_per_second": task.steps * task.batch_size / seconds,
        "peak_memory_mb": peak_memory_mb(),
        "batch_size": task.batch_size,
    }
