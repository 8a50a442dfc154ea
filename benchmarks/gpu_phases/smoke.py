"""What the CPU's tests promise, seen on the GPU: precision, skipped steps, full memory, resuming, waits of the host."""

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_phases.clock import clean_slate, release
from gpu_phases.exactness import ZERO_BUT_FOR_ROUNDING, gradients
from gpu_phases.runner import Figures
from gpu_phases.training import Task, build_trainer, epoch_of
from torch import Tensor, nn

from knee_siglip.params.sections import TrainParams
from knee_siglip.training.trainer import Trainer

EAGER = {"mixed_precision": "bf16", "compile": False, "cuda_graphs": False}


def bf16_beside_float32(task: Task) -> Figures:
    """Norm of the difference of all gradients of one group, relative to the float32 ones, and their cosine."""
    with clean_slate(task.device):
        exact = gradients(task, task.batch_size, "none", checkpointing=False)
        half = gradients(task, task.batch_size, "bf16", checkpointing=False)
    names = [name for name in exact if not name.endswith(ZERO_BUT_FOR_ROUNDING)]
    difference = math.sqrt(sum(float((half[name] - exact[name]).square().sum()) for name in names))
    norm = math.sqrt(sum(float(exact[name].square().sum()) for name in names))
    product = sum(float((half[name] * exact[name]).sum()) for name in names)
    half_norm = math.sqrt(sum(float(half[name].square().sum()) for name in names))
    return {"difference": difference / norm, "cosine": product / norm / half_norm}


def skipped_step(task: Task) -> Figures:
    """A step whose embeddings are not numbers: how many values of weights and moments it changes, among how many."""
    with clean_slate(task.device):
        trainer = _trainer(task, steps=1, epochs=3)
        epoch_of(trainer)
        before = _values(trainer)
        with _spoilt(trainer.model.visual_projection):
            skipped = epoch_of(trainer)["train.skipped_steps"]
        after = _values(trainer)
        changed = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
        moved = epoch_of(trainer)["train.skipped_steps"] == 0
        differs = any(bool((old != new).any()) for old, new in zip(after, _values(trainer), strict=True))
    return {"changed": changed, "skipped": skipped, "next_step_trains": float(moved and differs)}


def full_memory(task: Task) -> Figures:
    """One step with memory for about half a batch's activations beside one with enough: pieces, and losses."""
    with clean_slate(task.device):
        roomy = _trainer(task, steps=1, epochs=2)
        loss = epoch_of(roomy)["train.loss"]
        peak = torch.cuda.max_memory_allocated(task.device) if task.device.type == "cuda" else 0
        del roomy
    with clean_slate(task.device):
        trainer = _trainer(task, steps=1, epochs=2)
        with _half_the_memory(trainer, peak):
            halved_loss = epoch_of(trainer)["train.loss"]
        pieces = trainer.gradient_cache.micro_batch_size
    return {
        "batch_size": task.batch_size,
        "micro_batch_size": pieces,
        "halved": float(pieces < task.batch_size),
        "loss": loss,
        "loss_difference": abs(halved_loss - loss) / abs(loss),
    }


def resumed(task: Task) -> Figures:
    """Two epochs of two steps, whole and with a state written and read between, beside the whole training.

    Norm of the difference of all weights, relative to how far training moved them; `repeated` is the same training a
    second time: what a GPU's order of sums alone makes.
    """
    with clean_slate(task.device):
        start = _weights(_trainer(task, steps=2, epochs=2))
        whole, again = _trainer(task, steps=2, epochs=2), _trainer(task, steps=2, epochs=2)
        for trainer in (whole, again):
            epoch_of(trainer)
            epoch_of(trainer)
        first, second = _trainer(task, steps=2, epochs=2), _trainer(task, steps=2, epochs=2)
        epoch_of(first)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        epoch_of(second)
        trained = _weights(whole)
        moved = _distance(start, trained)
        return {
            "resumed": _distance(_weights(second), trained) / moved,
            "repeated": _distance(_weights(again), trained) / moved,
            "moved": moved,
            "steps": second.step,
        }


def recorded(task: Task) -> Figures:
    """Six steps, of which the last four are launched as CUDA graphs, beside six ordinary ones; as in `resumed`."""
    with clean_slate(task.device):
        start = _weights(_trainer(task, steps=6, epochs=1))
        trainers = [_trainer(task, steps=6, epochs=1, cuda_graphs=by_graphs) for by_graphs in (False, False, True)]
        for trainer in trainers:
            epoch_of(trainer)
        whole, again, by_graphs = (_weights(trainer) for trainer in trainers)
        moved = _distance(start, whole)
        return {
            "recorded": _distance(by_graphs, whole) / moved,
            "repeated": _distance(again, whole) / moved,
            "graphs": len(trainers[-1].gradient_cache.graphs) + len(trainers[-1].loss),
            "graphs_wanted": 2 if task.device.type == "cuda" else 0,
        }


def host_waits(task: Task, cuda_graphs: bool) -> Figures:
    """Waits of the host for the device in a step between flushes, by the line that waits.

    Counted twice, in epochs of different length, so that what happens once an epoch cancels.
    """
    if task.device.type != "cuda":
        return {"waits_a_step": 0.0, "lines": {}}
    with clean_slate(task.device):
        # after four steps or a few more: the tenth step, a flush, is in neither
        few, many = _waits(task, steps=2, cuda_graphs=cuda_graphs), _waits(task, steps=4, cuda_graphs=cuda_graphs)
    lines = {line: (many[line] - few[line]) / 2 for line in sorted(many) if many[line] != few[line]}
    return {"waits_a_step": sum(lines.values()), "lines": lines}


def _waits(task: Task, steps: int, cuda_graphs: bool) -> Counter[str]:
    trainer = _trainer(task, steps=steps, epochs=4, cuda_graphs=cuda_graphs)
    for _ in range(4 // steps):
        epoch_of(trainer)  # whatever happens once only
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            epoch_of(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronising = [found for found in caught if re.search("synchroniz", str(found.message))]
    return Counter(f"{Path(found.filename).name}:{found.lineno}" for found in synchronising)


def _trainer(task: Task, steps: int, epochs: int, **changes: bool) -> Trainer:
    options: dict[str, Any] = EAGER | changes
    params = TrainParams(batch_size=task.batch_size, epochs=epochs, learning_rate=1e-4, **options)
    return build_trainer(task, params, steps * task.batch_size)


def _values(trainer: Trainer) -> list[Tensor]:
    """Copies of all weights and moments."""
    state = trainer.optimizer.state
    moments = [state[p][name] for p in trainer.model.parameters() for name in ("exp_avg", "exp_avg_sq") if p in state]
    return [value.detach().clone() for value in [*trainer.model.parameters(), *moments]]


def _weights(trainer: Trainer) -> list[Tensor]:
    """Copies of all weights but those whose gradients are rounding alone, which Adam would make as large as any."""
    named = trainer.model.named_parameters()
    return [value.detach().clone() for name, value in named if not name.endswith(ZERO_BUT_FOR_ROUNDING)]


def _distance(these: list[Tensor], those: list[Tensor]) -> float:
    """Norm of the difference over all of them together."""
    squares = [(this - that).double().square().sum() for this, that in zip(these, those, strict=True)]
    return math.sqrt(float(sum(squares)))


@contextmanager
def _spoilt(module: nn.Module) -> Iterator[None]:
    """Its output is not a number."""
    hook = module.register_forward_hook(lambda _, __, output: output * float("nan"))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _half_the_memory(trainer: Trainer, peak: int) -> Iterator[None]:
    """Memory ends between what the trainer holds and `peak`; on a CPU a whole batch is refused."""
    device = trainer.device
    if device.type == "cuda":
        release(device)
        held = torch.cuda.memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        # the optimizer's moments, which the first step makes, and the gradients: three times the weights
        fixed = held + 3 * sum(p.nbytes for p in trainer.model.parameters())
        torch.cuda.set_per_process_memory_fraction((fixed + max(0, peak - fixed) / 2) / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return

    def refuse(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > trainer.params.batch_size // 2:
            raise torch.OutOfMemoryError("no memory for the whole batch")

    hook = trainer.encoder.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
