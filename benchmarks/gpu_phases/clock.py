"""Time and memory on the device."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


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
        release(device)


def release(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
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
