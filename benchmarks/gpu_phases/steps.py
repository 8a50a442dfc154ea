"""Where a training step's time goes: its kernels, the loss, a group of many pieces."""

from typing import Any

import torch
from gpu_phases.clock import clean_slate, release, timed
from gpu_phases.runner import Figures
from gpu_phases.training import Task, build_trainer, epoch_of
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from knee_siglip.params.sections import TrainParams
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.graphs import SIGHTINGS, Graphs

SHOWN_KERNELS = 20
LOSS_REPEATS = 5


def profiled(task: Task, **options: Any) -> Figures:
    """The kernels of an epoch of `task.steps` steps, after one that warms up.

    kernels: the longest, milliseconds and calls a step. busy_share: of the wall clock in which kernels ran, the
    profiler's own cost included.
    """
    on_gpu = task.device.type == "cuda"
    params = TrainParams(batch_size=task.batch_size, epochs=2, learning_rate=1e-4, **options)
    with clean_slate(task.device):
        trainer = build_trainer(task, params, task.steps * task.batch_size)
        epoch_of(trainer)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            seconds = timed(lambda: epoch_of(trainer), task.device)
        torch.compiler.reset()
    events = profiler.key_averages()
    if on_gpu:
        kernels = [(e.key, e.self_device_time_total, e.count) for e in events if e.device_type == DeviceType.CUDA]
    else:
        kernels = [(e.key, e.self_cpu_time_total, e.count) for e in events]
    kernels.sort(key=lambda kernel: -kernel[1])
    return {
        "kernels": [
            {"name": name[:100], "ms": time / 1000 / task.steps, "calls": count / task.steps}
            for name, time, count in kernels[:SHOWN_KERNELS]
        ],
        "kernel_ms": sum(time for _, time, _ in kernels) / 1000 / task.steps,
        "calls": sum(count for _, _, count in kernels) / task.steps,
        "wall_ms": 1000 * seconds / task.steps,
        "busy_share": sum(time for _, time, _ in kernels) / 1e6 / seconds,
    }


def loss_alone(width: int, counts: tuple[int, ...], device: torch.device) -> Figures:
    """Milliseconds and MB of the loss forward and backward, by the number of pairs, as the Trainer computes it."""
    found: Figures = {}
    for count in counts:
        release(device)
        embeds = F.normalize(torch.randn(2, count, width, device=device), dim=-1)
        images, texts = (embed.detach().requires_grad_() for embed in embeds)
        scale = torch.tensor(14.3, device=device, requires_grad=True)
        bias = torch.tensor(-10.0, device=device, requires_grad=True)
        ids = torch.arange(count, device=device).unsqueeze(1)

        loss = Graphs(contrastive_loss, [], device.type == "cuda")

        inputs = images, texts, scale, bias, ids, ids

        def once(loss: Graphs = loss, inputs: tuple[torch.Tensor, ...] = inputs) -> None:
            loss(*inputs)[0].backward()

        for _ in range(SIGHTINGS):
            once()

        def repeated() -> None:
            for _ in range(LOSS_REPEATS):
                once()

        seconds = timed(repeated, device) / LOSS_REPEATS
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        found[str(count)] = {"ms": 1000 * seconds, "peak_mb": peak}
    return found
