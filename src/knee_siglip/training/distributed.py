"""The ranks that train one model together, one or several: their parts of a group, and what they exchange.

torchrun (or `accelerate launch`) starts the processes, and DDP averages the gradients of what they encode.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_siglip.core.errors import UsageError
from knee_siglip.model.device import pick_device

OUTSIDE_ENCODING = ["model.logit_scale", "model.logit_bias"]
"""Parameters of a `PairEncoder` that take no part in encoding: their gradients come from the loss, which is the same in
every process."""

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another, such as one that fills the store."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, seen from number `rank` of `size`.

    `control`: process group of the hosts; waiting there does not stop the devices.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and shows."""
        return self.rank == 0

    def local_part(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a group (G,); the parts differ by one at most."""
        return np.array_split(indices, self.size)[self.rank]

    def wrap(self, encoder: nn.Module) -> nn.Module:
        """The encoder, with its gradients averaged over the processes if there are several."""
        if self.size == 1:
            return encoder
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(encoder, OUTSIDE_ENCODING)
        return DistributedDataParallel(encoder, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Rows (m, ...) of each process, split by `local_part`, to all (count, ...) in order."""
        if self.size == 1:
            return rows
        sizes = self.part_sizes(count)
        parts = [rows.new_empty(max(sizes), *rows.shape[1:]) for _ in sizes]
        padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, element by element, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def part_sizes(self, count: int) -> list[int]:
        """Length of each rank's part of `count`, as `local_part` splits it."""
        return [len(part) for part in np.array_split(np.empty(count), self.size)]


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """This process's place among those that torchrun started, and its device; alone without torchrun.

    Raises:
        UsageError: more processes on this machine than GPUs, or one named GPU for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(), pick_device(device)
        return
    chosen = _local_device(device)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        yield Ranks(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=TIMEOUT)), chosen
    finally:
        dist.destroy_process_group()


def _local_device(device: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device)
    if chosen.type != "cuda":
        return chosen
    if chosen.index is not None:
        raise UsageError(f"device {device!r}: several processes take one GPU each; give auto, cuda or cpu")
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start at most as many "
            "processes (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
