"""Several processes that train one model together, or one alone: what they share, and what they tell each other.

torchrun (or `accelerate launch`) starts the processes and DDP joins the gradients of what they encode. The loss is not
averaged over processes: each keeps its images, the blocks of texts go round in a ring, and so every image of the group
meets every text while no process holds more than its part (Zhai et al. 2023, arXiv:2303.15343, section 3.3).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_siglip.core.errors import UsageError
from knee_siglip.model.device import pick_device
from knee_siglip.model.loss import Side, meet

OUTSIDE_DDP = ["model.logit_scale", "model.logit_bias"]
"""Take no part in encoding; their gradients come from the loss, which every process knows whole."""

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, such as for one that fills the store."""


@dataclass(frozen=True)
class GroupLoss:
    """Loss of a whole group, and its gradients as far as this process needs them.

    loss, accuracy, scale_grad (by the factor, not its logarithm), bias_grad: (), the same everywhere. image_grads,
    text_grads: (m, D) of this process's own m pairs.
    """

    loss: Tensor
    accuracy: Tensor
    image_grads: Tensor
    text_grads: Tensor
    scale_grad: Tensor
    bias_grad: Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, seen from the one numbered `rank` of `size`.

    `control`: group over which the hosts talk. They may wait for each other there, the devices go on computing.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and shows."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a group (G,); the parts differ by one at most."""
        return np.array_split(indices, self.size)[self.rank]

    def wrap(self, encoder: nn.Module) -> nn.Module:
        """The encoder, with its gradients averaged over the processes wherever there are several."""
        if self.size == 1:
            return encoder
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(encoder, OUTSIDE_DDP)
        return DistributedDataParallel(encoder, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def wait(self) -> None:
        """Until all have come so far."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """(m, ...) of each process, shared out from `count` by `share`, to all (count, ...) in order."""
        if self.size == 1:
            return rows
        sizes = self._sizes(count)
        parts = [rows.new_empty(max(sizes), *rows.shape[1:]) for _ in sizes]
        padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def contrastive(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        positive_ids: Tensor,
        text_ids: Tensor,
        group_size: int,
    ) -> GroupLoss:
        """The loss of the group of which this process encoded m pairs, without a graph.

        Args:
            image_embeds, text_embeds: (m, D), L2-normalised.
            logit_scale: () factor of the cosine.
            positive_ids: (m,) equal where image and text are a positive pair.
            text_ids: (m,) equal where texts are.
            group_size: pairs of all processes together.
        """
        images = Side.begin(image_embeds, positive_ids, text_ids)
        texts = Side.begin(text_embeds, positive_ids, text_ids)
        sizes = self._sizes(group_size)
        sums = torch.zeros(2, dtype=torch.float64, device=image_embeds.device)
        for hop in range(self.size):
            sums += meet(images, texts, logit_scale, logit_bias)
            texts = self._pass_on(texts, sizes[(self.rank - hop - 1) % self.size])
        assert images.grads is not None
        assert texts.grads is not None
        scale_sum = (images.embeds * images.grads).sum(dtype=torch.float64)
        correct = (images.correct().sum() + texts.correct().sum()) / 2
        totals = torch.stack([*sums, scale_sum, correct.to(torch.float64)])
        if self.size > 1:
            dist.all_reduce(totals)
        loss, bias_grad, scale_grad, accuracy = (totals / group_size).to(image_embeds.dtype)
        factor = logit_scale / group_size
        return GroupLoss(loss, accuracy, images.grads * factor, texts.grads * factor, scale_grad, bias_grad)

    def _sizes(self, count: int) -> list[int]:
        return [len(part) for part in np.array_split(np.empty(count), self.size)]

    def _pass_on(self, texts: Side, incoming: int) -> Side:
        """Give a block of texts, with what was summed up for it, to the next process; take that of the one before."""
        if self.size == 1:
            return texts
        assert texts.grads is not None
        assert texts.bests is not None
        width = texts.embeds.shape[1]
        sent = [
            torch.cat([texts.embeds, texts.grads, texts.bests.T], dim=1),
            torch.stack([texts.positive_ids, texts.text_ids], dim=1),
        ]
        received = [part.new_empty(incoming, part.shape[1]) for part in sent]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        transfers = [dist.P2POp(dist.isend, part, after) for part in sent if len(part)]
        transfers += [dist.P2POp(dist.irecv, part, before) for part in received if len(part)]
        for transfer in dist.batch_isend_irecv(transfers) if transfers else []:
            transfer.wait()
        values, ids = received
        embeds, grads, bests = values.split([width, width, 2], dim=1)
        return replace(
            texts,
            embeds=embeds.contiguous(),
            grads=grads.contiguous(),
            bests=bests.T.contiguous(),
            positive_ids=ids[:, 0].contiguous(),
            text_ids=ids[:, 1].contiguous(),
        )


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """This process's place among those that torchrun started, and its device; alone without torchrun.

    Raises:
        UsageError: more processes on this machine than it has GPUs, or a device that they cannot share out.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(), pick_device(device)
        return
    chosen = _local_device(device)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=PATIENCE,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        yield Ranks(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=PATIENCE)), chosen
    finally:
        dist.destroy_process_group()


def _local_device(device: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device)
    if chosen.type != "cuda":
        return chosen
    if chosen.index is not None:
        raise UsageError(f"device {device!r}: several processes take a GPU each; give auto, cuda or cpu")
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start at most so many "
            "(torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
