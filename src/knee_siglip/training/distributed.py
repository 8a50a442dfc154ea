"""The ranks that train one model together, one or several: their parts of a group, and what they exchange.

torchrun (or `accelerate launch`) starts the processes; `GradientSum` adds up the gradients of what they encode.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from knee_siglip.core.errors import UsageError
from knee_siglip.model.device import pick_device

BUCKET_BYTES = 25 * 2**20
"""Gradients sent at a time, as DDP has it: enough to fill the connection, and the first ones leave early."""

T = TypeVar("T")

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

    def max(self, values: Tensor) -> Tensor:
        """Maximum over all ranks, element by element, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """The first rank's values, in place, on a CPU."""
        if self.size > 1:
            dist.broadcast(values, 0, group=self.control)
        return values

    def broadcast_object(self, value: T | None) -> T | None:
        """The first rank's value, which must be small; the others' own is ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, group=self.control)
        return values[0]

    def part_sizes(self, count: int) -> list[int]:
        """Length of each rank's part of `count`, as `local_part` splits it."""
        return [len(part) for part in np.array_split(np.empty(count), self.size)]


class GradientSum:
    """Sums gradients over the ranks while the backward pass still computes others.

    As `DistributedDataParallel` does, but a rank whose pass fails still takes part in every exchange, so that no rank
    waits for ever and all can repeat the pass; DDP's exchange ends with the process. Nothing to do on a single rank.

    Args:
        parameters: those whose gradients are sums over the ranks; all ranks begin with the first one's values. Their
            `.grad` become views of buckets, which are sent whole and in place.
    """

    def __init__(self, parameters: list[nn.Parameter], ranks: Ranks) -> None:
        self.ranks = ranks
        self._parameters = parameters if ranks.size > 1 else []
        self._buckets = _fill_buckets(list(reversed(self._parameters)))
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._arrived: list[nn.Parameter] | None = []  # in this order, until the buckets follow it
        self._is_last_piece = False
        self._sent: list[dist.Work] = []
        for parameter in self._parameters:
            dist.broadcast(parameter.data, 0)
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Zero the gradients; after the block, which may fail, they are sums over the ranks.

        Raises:
            Whatever the block raises, once all ranks have left it.
        """
        for bucket in self._buckets:
            bucket.clear()
        try:
            yield
        finally:
            self._is_last_piece = False
            while len(self._sent) < len(self._buckets):
                self._send_next()
            for work in self._sent:
                work.wait()
            self._sent = []
            self._follow_arrivals()

    def begin_last_piece(self) -> None:
        """From now until the block's end each gradient is complete as soon as autograd has added to it."""
        self._is_last_piece = True

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._is_last_piece:
            return
        assert isinstance(parameter, nn.Parameter)
        self._bucket_of[parameter].missing.discard(parameter)
        if self._arrived is not None:
            self._arrived.append(parameter)
        # in the same order on every rank
        while len(self._sent) < len(self._buckets) and not self._buckets[len(self._sent)].missing:
            self._send_next()

    def _send_next(self) -> None:
        work = dist.all_reduce(self._buckets[len(self._sent)].values, async_op=True)
        assert work is not None
        self._sent.append(work)

    def _follow_arrivals(self) -> None:
        """After the first pass, fill the buckets anew in the order in which its gradients came."""
        if self._arrived is None:
            return
        numbers = {parameter: number for number, parameter in enumerate(self._parameters)}
        came = [numbers[parameter] for parameter in self._arrived]
        order = self.ranks.broadcast_object([*came, *sorted(set(numbers.values()) - set(came))])
        assert order is not None
        self._buckets = _fill_buckets([self._parameters[number] for number in order])
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._arrived = None


@dataclass
class _Bucket:
    """Gradients that are sent together. values: (n,) all of them; missing: parameters without their whole gradient."""

    parameters: list[nn.Parameter]
    values: Tensor
    missing: set[Tensor] = field(default_factory=set)

    def clear(self) -> None:
        """Zero the gradients and give them to the parameters."""
        self.missing = set(self.parameters)
        parts = self.values.zero_().split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def _fill_buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """Buckets of at most BUCKET_BYTES of one type each, or of a single larger parameter."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        size += parameter.nbytes
        if not groups or size > BUCKET_BYTES or parameter.dtype != groups[-1][-1].dtype:
            groups.append([])
            size = parameter.nbytes
        groups[-1].append(parameter)
    return [_Bucket(group, group[0].new_empty(sum(parameter.numel() for parameter in group))) for group in groups]


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """This process's place among those that torchrun started, and its device; alone without torchrun.

    Raises:
        UsageError: more processes on this machine than GPUs, or one named GPU for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        chosen = pick_device(device)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # events and streams are those of the current device
        yield Ranks(), chosen
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
