"""How fast training is: pairs per second, model FLOPs and their share of the peak, time without data, memory."""

import resource
import time
from dataclasses import dataclass, field

import torch

from knee_siglip.training.flops import mfu


@dataclass
class Throughput:
    """Counts the training steps' own time, without validation and saving; goes on after a resume.

    `peak`: FLOP/s of all devices together, None where it is not known.
    """

    peak: float | None = None
    seconds: float = 0.0
    waited: float = 0.0
    pairs: int = 0
    flops: float = 0.0
    _since: float = field(default=0.0, repr=False)
    _steps: int = field(default=0, repr=False)

    def start(self) -> None:
        """Steps begin now."""
        self._since = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """So long no batch was ready."""
        self.waited += seconds

    def count(self, pairs: int, flops: float) -> None:
        """A step was begun, with so many model FLOPs on all devices together."""
        self.pairs += pairs
        self.flops += flops
        self._steps += 1

    def lap(self) -> None:
        """The steps counted up to now are done, on the device too.

        Without any since the last lap the time was not training's: the state may be saved right after validation.
        """
        now = time.perf_counter()
        if self._steps:
            self.seconds += now - self._since
        self._since, self._steps = now, 0

    def metrics(self) -> dict[str, float]:
        """pairs_per_second, data_wait_share (upper bound), model_tflops_per_second, mfu where the peak is known."""
        if not self.seconds:
            return {}
        found = {
            "pairs_per_second": self.pairs / self.seconds,
            "data_wait_share": self.waited / self.seconds,
            "model_tflops_per_second": self.flops / self.seconds / 1e12,
        }
        if self.peak:
            found["mfu"] = mfu(self.flops, self.seconds, self.peak)
        return found | {"peak_memory_mb": peak_memory_mb()}

    def state_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"seconds": self.seconds, "waited": self.waited, "pairs": self.pairs, "flops": self.flops}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was taken."""
        self.seconds, self.waited, self.flops = state["seconds"], state["waited"], state["flops"]
        self.pairs = int(state["pairs"])


def peak_memory_mb() -> float:
    """Largest memory held so far: the GPU's where one is used, else the process's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
