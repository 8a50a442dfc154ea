"""Batches ready before they are needed: a thread gathers and pins the next ones while the device computes."""

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch

from knee_siglip.pairs.batches import Batch

Ahead = int | Literal["auto"]
"""Batches gathered in advance."""


def prefetch_batches(
    gather: Callable[[np.ndarray], Batch],
    groups: Sequence[np.ndarray],
    device: torch.device,
    ahead: Ahead,
    on_wait: Callable[[float], None] | None = None,
) -> Generator[Batch]:
    """Yield the batches of `groups`, on the device; close the generator to end its thread early.

    Args:
        gather: indices (B,) to a batch on the CPU.
        groups: the indices of each batch, in order.
        ahead: batches gathered in advance; 0 gathers each one when it is asked for. `auto` is 1, but 0 on a CPU, whose
            cores are busy computing.
        on_wait: told the seconds for which the training thread had no batch. The device may still have had work.
    """

    def prepare(indices: np.ndarray) -> Batch:
        batch = gather(indices)
        return batch.pin() if device.type == "cuda" else batch

    def timed(get: Callable[[], Batch]) -> Batch:
        started = time.perf_counter()
        batch = get()
        if on_wait:
            on_wait(time.perf_counter() - started)
        return batch.to(device)

    if ahead == "auto":
        ahead = int(device.type != "cpu")
    if not ahead:
        for indices in groups:
            yield timed(lambda indices=indices: prepare(indices))  # type: ignore[misc]
        return
    with ThreadPoolExecutor(1, "prefetch", _select_device, (device,)) as thread:
        waiting: deque[Future[Batch]] = deque()
        try:
            for number, indices in enumerate(groups):
                waiting.append(thread.submit(prepare, indices))
                if number >= ahead:
                    yield timed(waiting.popleft().result)
            while waiting:
                yield timed(waiting.popleft().result)
        finally:
            for future in waiting:
                future.cancel()


def _select_device(device: torch.device) -> None:
    """Make this thread pin memory for its rank's GPU: a new thread starts on the first one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
