"""Training at full size on synthetic pairs in memory: this project's `Trainer`, open_clip's loop, and a plain one.

Each function trains some steps that are not timed, then those that are, and leaves the device as it found it.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip_training import OpenClipTraining
from peers import open_clip
from rich.progress import Progress
from sizes import Sizes, our_model
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import PairDataset
from knee_siglip.params.sections import TrainParams
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.throughput import Throughput, peak_memory_mb
from knee_siglip.training.trainer import Trainer

Figures = dict[str, Any]
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


def synthetic_pairs(count: int, image_size: int, sizes: Sizes) -> PairDataset:
    """Noise and random tokens; no two texts are equal, since the peers would encode equal ones again and again."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, image_size, image_size), dtype=np.uint8)
    tokens = torch.from_numpy(rng.integers(2, sizes.vocabulary, (count, sizes.positions)))
    return PairDataset(ArrayPixels(pixels), np.arange(count), tokens, np.arange(count))


def build_trainer(task: Task, params: TrainParams, count: int) -> Trainer:
    """This project's, with random weights, over `count` pairs."""
    with task.device:  # random numbers of this size take seconds on a CPU
        model = our_model(task.sizes, params.batch_size * params.gradient_accumulation_steps)
    pairs = synthetic_pairs(count, task.image_size, task.sizes)
    return Trainer(
        model,
        pairs,
        pairs,
        params,
        seed=0,
        device=task.device,
        log=lambda _, __: None,
        on_best=lambda _: None,
        guard=FiniteGuard(0, None, lambda _: []),
    )


def epoch_of(trainer: Trainer) -> dict[str, float]:
    """One epoch as `Trainer.fit` trains it, without validation; its speed is in `trainer.throughput` afterwards."""
    trainer.throughput = Throughput(trainer.throughput.peak)
    metrics = trainer.train_epoch(Progress(disable=True))
    trainer.history.epochs.append(metrics)
    trainer.records = []
    return metrics


def train_ours(task: Task, **options: Any) -> Figures:
    """`Trainer.train_epoch` with the default params but for `options`: an epoch that warms up, and one that counts."""
    params = TrainParams(batch_size=task.batch_size, epochs=2, learning_rate=1e-4, **options)
    with clean_slate(task.device):
        trainer = build_trainer(task, params, task.steps * task.batch_size)
        started = time.perf_counter()
        epoch_of(trainer)
        first = time.perf_counter() - started
        metrics = epoch_of(trainer)
        if params.compile:
            torch.compiler.reset()
        return trainer.throughput.metrics() | {
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


def train_open_clip(task: Task, image_size: int, changes: dict[str, Any]) -> Figures:
    """open_clip's ViT-B-16-SigLIP (but for `changes` of its config) at `image_size`, by its own loop in bf16."""
    with clean_slate(task.device):
        torch.backends.cudnn.benchmark = True  # as its main does
        model = open_clip().create_model(
            "ViT-B-16-SigLIP", force_image_size=image_size, device=task.device, output_dict=True, **changes
        )
        training = OpenClipTraining(model, task.batch_size, task.device, "amp_bf16")
        training.epoch(ReadyBatches(task, image_size, 2))
        batches = ReadyBatches(task, image_size, task.steps)
        seconds = timed(lambda: training.epoch(batches), task.device)
        return _plain_figures(task, seconds) | {"image_size": image_size}


def train_plain(task: Task, half: bool) -> Figures:
    """The same towers as transformers runs them, loss and loop in the plainest way; fp32, or fp16 with a scaler."""
    with clean_slate(task.device):
        with task.device:
            model = our_model(task.sizes, task.batch_size).train()
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
    batch_size = task.batch_size
    while True:
        try:
            return train(Task(task.sizes, task.image_size, batch_size, task.steps, task.device))
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # outside the handler: its traceback holds what filled the memory
        release(task.device)
        batch_size //= 2
        print(f"  out of memory; again with batches of {batch_size}", flush=True)


@contextmanager
def clean_slate(device: torch.device) -> Iterator[None]:
    """Memory counted from here, and torch's settings as they were afterwards."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark
    release(device)
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark = before


def release(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds, until the device has done it."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shown(names: Sequence[str], figures: Figures) -> str:
    """Some of the figures in one line."""
    return ", ".join(f"{name} {figures[name]:.4g}" for name in names if name in figures)


def _plain_figures(task: Task, seconds: float) -> Figures:
    return {
        "pairs_per_second": task.steps * task.batch_size / seconds,
        "peak_memory_mb": peak_memory_mb(),
        "batch_size": task.batch_size,
    }
