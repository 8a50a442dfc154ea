"""The contrastive loss of a group whose pairs lie on several ranks.

The loss is not averaged over ranks: each rank keeps its images, and every image of the group meets every text. In large
groups the blocks of texts go round in a ring, so that no rank holds more than its part (Zhai et al. 2023,
arXiv:2303.15343, section 3.3); in small ones each rank gathers all texts, which takes fewer exchanges.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from knee_siglip.model.loss import Modality, add_pairs
from knee_siglip.training.distributed import Ranks

ALONE = Ranks()

GATHER_BELOW = 1024
"""Pairs a rank below which all texts are gathered: there an exchange costs its latency, not its bytes."""


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    positive_ids: Tensor,
    correct_ids: Tensor,
    group_size: int | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Loss and contrastive accuracy () of the group of which this rank encoded m pairs, the same on every rank.

    The loss is differentiable once. What autograd keeps grows with m, not with its square.

    Args:
        image_embeds, text_embeds: (m, D), L2-normalised.
        logit_scale: () factor of the cosine similarity, i.e. already exponentiated.
        positive_ids: (m, K), as `Modality` has them: which pairs are positives.
        correct_ids: (m, C), the same for which ones the accuracy counts as correct.
        group_size: pairs of all ranks together; None: of this one, which is alone.
    """
    count = len(image_embeds) if group_size is None else group_size
    loss, accuracy = _ContrastiveLoss.apply(
        image_embeds, text_embeds, logit_scale, logit_bias, positive_ids, correct_ids, count, ranks
    )
    return loss, accuracy


class _ContrastiveLoss(torch.autograd.Function):
    """Computes the gradients along with the loss, so that each tile of logits can be dropped at once."""

    @staticmethod
    def forward(
        ctx: Any,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        positive_ids: Tensor,
        correct_ids: Tensor,
        group_size: int,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:
        images = Modality.begin(image_embeds, positive_ids, correct_ids)
        texts = Modality.begin(text_embeds, positive_ids, correct_ids)
        sizes = ranks.part_sizes(group_size)
        meet = _meet_in_ring if ranks.size == 1 or max(sizes) >= GATHER_BELOW else _meet_gathered
        sums, texts = meet(images, texts, logit_scale, logit_bias, sizes, ranks)
        assert images.grads is not None
        assert texts.grads is not None
        scale_sum = (image_embeds * images.grads).sum(dtype=torch.float64)
        correct = (images.correct().sum() + texts.correct().sum()) / 2
        totals = ranks.sum(torch.stack([*sums, scale_sum, correct.to(torch.float64)])) / group_size
        loss, bias_grad, scale_grad, accuracy = totals.to(image_embeds.dtype).unbind()
        factor = logit_scale / group_size
        ctx.save_for_backward(images.grads.mul_(factor), texts.grads.mul_(factor), scale_grad, bias_grad)
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        loss_grad = grads[0]
        image_grads, text_grads, scale_grad, bias_grad = ctx.saved_tensors
        by_ids_and_ranks = (None, None, None, None)
        by_embeds = (loss_grad * image_grads, loss_grad * text_grads)
        return (*by_embeds, loss_grad * scale_grad, loss_grad * bias_grad, *by_ids_and_ranks)


def _meet_in_ring(
    images: Modality, texts: Modality, logit_scale: Tensor, logit_bias: Tensor, sizes: list[int], ranks: Ranks
) -> tuple[Tensor, Modality]:
    """Sums (2,) of this rank's images with all texts, and its own texts with their sums over all images."""
    sums = torch.zeros(2, dtype=torch.float64, device=images.embeds.device)
    for hop in range(ranks.size):
        sums += add_pairs(images, texts, logit_scale, logit_bias)
        texts = _pass_on(texts, sizes[(ranks.rank - hop - 1) % ranks.size], ranks)
    # after a whole round this rank has its own texts again
    return sums, texts


def _meet_gathered(
    images: Modality, texts: Modality, logit_scale: Tensor, logit_bias: Tensor, sizes: list[int], ranks: Ranks
) -> tuple[Tensor, Modality]:
    """As `_meet_in_ring`, with all texts at once on every rank."""
    gathered = (ranks.gather(part, sum(sizes)) for part in (texts.embeds, texts.positive_ids, texts.correct_ids))
    all_texts = Modality.begin(*gathered)
    sums = add_pairs(images, all_texts, logit_scale, logit_bias)
    assert all_texts.grads is not None
    assert all_texts.best_logits is not None
    grads = ranks.sum(all_texts.grads).split(sizes)[ranks.rank]
    best_logits = ranks.max(all_texts.best_logits).split(sizes, dim=1)[ranks.rank]
    return sums, replace(texts, grads=grads, best_logits=best_logits)


def _pass_on(texts: Modality, incoming: int, ranks: Ranks) -> Modality:
    """Send a block of texts with its sums to the next rank; receive the previous rank's."""
    if ranks.size == 1:
        return texts
    assert texts.grads is not None
    assert texts.best_logits is not None
    width = texts.embeds.shape[1]
    values, ids = _exchange(
        torch.cat([texts.embeds, texts.grads, texts.best_logits.T], dim=1),
        torch.cat([texts.positive_ids, texts.correct_ids], dim=1),
        incoming=incoming,
        ranks=ranks,
    )
    embeds, grads, best_logits = values.split([width, width, 2], dim=1)
    positive_ids, correct_ids = ids.split([texts.positive_ids.shape[1], texts.correct_ids.shape[1]], dim=1)
    return replace(
        texts,
        embeds=embeds.contiguous(),
        grads=grads.contiguous(),
        best_logits=best_logits.T.contiguous(),
        positive_ids=positive_ids.contiguous(),
        correct_ids=correct_ids.contiguous(),
    )


def _exchange(*sent: Tensor, incoming: int, ranks: Ranks) -> list[Tensor]:
    """Send rows (m, ...) to the next rank; returns the `incoming` rows of the previous one."""
    received = [part.new_empty(incoming, part.shape[1]) for part in sent]
    after = (ranks.rank + 1) % ranks.size
    before = (ranks.rank - 1) % ranks.size
    transfers = [dist.P2POp(dist.isend, part, after) for part in sent if len(part)]
    transfers += [dist.P2POp(dist.irecv, part, before) for part in received if len(part)]
    for transfer in dist.batch_isend_irecv(transfers) if transfers else []:
        transfer.wait()
    return received
