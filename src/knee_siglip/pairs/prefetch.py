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
"""Batches that are gathered in advance."""


class Prefetcher:
    """Iterates over the batches of `groups`, on the device.

    Args:
        gather: indices (B,) to a batch on the CPU.
        groups: the indices of each batch, in order.
        ahead: batches that are gathered in advance; 0 gathers each one when it is asked for. `auto` is 1, but 0 on a
            CPU, whose cores have no time while they compute.
        on_wait: told the seconds for which the training thread had no batch. The device may still have had work.
    """

    def __init__(
        self,
        gather: Callable[[np.ndarray], Batch],
        groups: Sequence[np.ndarray],
        device: torch.device,
        ahead: Ahead,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self._gather, self._groups, self._device = gather, groups, device
        self._ahead = int(device.type != "cpu") if ahead == "auto" else ahead
        self._on_wait = on_wait

    def __iter__(self) -> Generator[Batch]:
        if not self._ahead:
            for indices in self._groups:
                yield self._ready(lambda indices=indices: self._prepare(indices))  # type: ignore[misc]
            return
        with ThreadPoolExecutor(1, "prefetch") as thread:
            waiting: deque[Future[Batch]] = deque()
            try:
                for number, indices in enumerate(self._groups):
                    waiting.append(thread.submit(self._prepare, indices))
                    if number >= self._ahead:
                        yield self._ready(waiting.popleft().result)
                while waiting:
                    yield self._ready(waiting.popleft().result)
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, indices: np.ndarray) -> Batch:
        batch = self._gather(indices)
        return batch.pin() if self._device.type == "cuda" else batch

    def _ready(self, get: Callable[[], Batch]) -> Batch:
        started = time.perf_counter()
        batch = get()
        if self._on_wait:
            self._on_wait(time.perf_counter() - started)
        return batch.to(self._device)
