"""What gradient caching promises: a batch far beyond a GPU's memory in one step, and the gradients of the whole."""

import math
from typing import Any

import numpy as np
import torch
from gpu_phases.clock import clean_slate, timed
from gpu_phases.runner import Figures
from gpu_phases.training import Task, build_trainer, epoch_of, synthetic_pairs
from group_gradients import add_gradients
from sizes import our_model
from torch import Tensor

from knee_siglip.model.device import autocast_dtype
from knee_siglip.params.sections import GradientCheckpointingParams, TrainParams
from knee_siglip.training.acceleration import accelerate
from knee_siglip.training.encoder import LocalBatch, PairEncoder

ZERO_BUT_FOR_ROUNDING = "k_proj.bias"
"""Softmax does not feel a constant added to all keys."""


def one_large_step(task: Task, micro_batch_size: int, **options: Any) -> Figures:
    """One optimizer step of the `Trainer` on a contrastive group of `task.batch_size`, encoded in pieces."""
    params = TrainParams(
        batch_size=task.batch_size, micro_batch_size=micro_batch_size, epochs=1, learning_rate=1e-4, **options
    )
    with clean_slate(task.device):
        trainer = build_trainer(task, params, task.batch_size)
        metrics: dict[str, float] = {}
        seconds = timed(lambda: metrics.update(epoch_of(trainer)), task.device)
        finite = math.isfinite(metrics["train.loss"]) and not metrics["train.skipped_steps"]
        return {
            "batch_size": task.batch_size,
            "micro_batch_size": trainer.gradient_cache.micro_batch_size,
            "seconds": seconds,
            "peak_memory_mb": trainer.throughput.metrics()["peak_memory_mb"],
            "loss": metrics["train.loss"],
            "finite": float(finite),
        }


def gradient_differences(task: Task, micro_batch_size: int, precision: str) -> Figures:
    """Norms of the differences between a group's gradients in pieces and undivided, relative to the undivided ones.

    The undivided group is encoded with gradient checkpointing, without which it would not fit.
    """
    with clean_slate(task.device):
        whole = gradients(task, task.batch_size, precision, checkpointing=True)
        pieces = gradients(task, micro_batch_size, precision, checkpointing=False)
        names = [name for name in whole if not name.endswith(ZERO_BUT_FOR_ROUNDING)]
        squares = {name: ((pieces[name] - whole[name]).square().sum(), whole[name].square().sum()) for name in names}
        of_each = {name: math.sqrt(difference / norm) for name, (difference, norm) in squares.items()}
        difference = sum(float(pair[0]) for pair in squares.values())
        norm = sum(float(pair[1]) for pair in squares.values())
        worst = max(of_each, key=lambda name: of_each[name])
        return {"all": math.sqrt(difference / norm), "largest": of_each[worst], "parameter": worst}


def gradients(task: Task, micro_batch_size: int, precision: str, checkpointing: bool) -> dict[str, Tensor]:
    """float64 (the sums of squares need it) gradients of one group, the same for the same task, on the CPU."""
    torch.manual_seed(0)
    params = TrainParams(
        mixed_precision=precision,  # type: ignore[arg-type]
        tf32=False,
        compile=False,
        gradient_checkpointing=GradientCheckpointingParams(vision=checkpointing, text=checkpointing),
    )
    with task.device:
        model = our_model(task.sizes, task.batch_size).train()
    accelerate(model, params, task.device)
    encoder = PairEncoder(model, autocast_dtype(precision, task.device), params.augment)
    pairs = synthetic_pairs(task, task.batch_size)
    batch = pairs.batch(np.arange(task.batch_size)).to(task.device)
    group = LocalBatch(batch, task.batch_size, task.batch_size, seed=0, step=0)
    add_gradients(encoder, group, micro_batch_size)
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.double().cpu() for name, gradient in named.items() if gradient is not None}
