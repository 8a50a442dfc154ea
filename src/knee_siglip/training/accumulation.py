"""Gradients of one contrastive group, encoded in as many pieces and on as many ranks as there are.

Gradient caching (Gao et al. 2021, arXiv:2101.06983): encode without a graph, differentiate the loss by the embeddings,
then encode each piece again with a graph and push those gradients through it. Every image meets every text whatever the
pieces, so the gradients of all parameters, logit scale and bias included, are those of the undivided group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import Embeds, PairEncoder, Share


class OutOfMemory(Exception):
    """Some rank's memory does not hold a piece; every rank raises it, and none has changed a weight."""


@dataclass(frozen=True)
class LossAndAccuracy:
    """() tensors of the whole group on the device, without a graph."""

    loss: Tensor
    accuracy: Tensor


def backward_group(
    encoder: PairEncoder,
    share: Share,
    micro_batch_size: int,
    ranks: Ranks,
    *,
    wrapped: nn.Module | None = None,
    multi_positive: bool = True,
    scale: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> LossAndAccuracy:
    """Add the gradients of the loss over all pairs of the group to the parameters' `.grad`, on every rank the same.

    Args:
        micro_batch_size: pairs that this rank encodes with a graph at a time.
        wrapped: the encoder as `Ranks.wrap` returned it, where there are several ranks.
        multi_positive: equal texts are positives; else only a pair's own text is.
        scale: the fp16 gradient scaling.

    Raises:
        OutOfMemory: a piece is too large; nothing but `.grad` has changed.
    """
    pieces = share.pieces(micro_batch_size)
    module = wrapped or encoder
    with _agreed(ranks):
        one = len(pieces) == 1
        parts = [module(*encoder.inputs(share, pieces[0]))] if one else encoder.encode_all(share, pieces)
    image_embeds, text_embeds = (torch.cat(part).detach() for part in zip(*parts, strict=True))
    model = encoder.model
    loss = ranks.contrastive(
        image_embeds,
        text_embeds,
        model.logit_scale.detach().exp(),
        model.logit_bias.detach(),
        share.positive_ids(multi_positive),
        share.text_ids,
        share.group_size,
    )
    _add_gradient(model.logit_scale, scale(loss.scale_grad * model.logit_scale.detach().exp()))
    _add_gradient(model.logit_bias, scale(loss.bias_grad))
    # DDP averages over the ranks, but the gradient of the group is their sum
    gradients = scale(ranks.size * loss.image_grads), scale(ranks.size * loss.text_grads)
    last = parts[0] if one else _encode_again(encoder, module, share, pieces, gradients, ranks)
    # once a rank has begun to exchange gradients, the others wait for it: no way back from here
    with _agreed(ranks) if ranks.size == 1 else nullcontext():
        _push(last, gradients, pieces[-1])
    return LossAndAccuracy(loss.loss, loss.accuracy)


def _encode_again(
    encoder: PairEncoder, module: nn.Module, share: Share, pieces: list[slice], gradients: Embeds, ranks: Ranks
) -> Embeds:
    """Second pass: each piece with a graph, and its share of the gradients through it; the last one's only encoded."""
    with _agreed(ranks):
        for rows in pieces[:-1]:
            with module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext():
                _push(module(*encoder.inputs(share, rows)), gradients, rows)
        return module(*encoder.inputs(share, pieces[-1]))


def _push(embeds: Embeds, gradients: Embeds, rows: slice) -> None:
    """The loss's gradients by a piece's embeddings, back to the parameters."""
    # a frozen tower without a trained projection behind it has no graph to push through
    live = [(out, grads[rows]) for out, grads in zip(embeds, gradients, strict=True) if out.requires_grad]
    torch.autograd.backward([out for out, _ in live], [grads for _, grads in live])


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@contextmanager
def _agreed(ranks: Ranks) -> Iterator[None]:
    """One rank's end of memory is that of all: those that had room do not wait for it in an exchange."""
    failed = False
    try:
        yield
    except torch.OutOfMemoryError:
        failed = True  # raised below: while it is being handled, its traceback holds what filled the memory
    if ranks.any(failed):
        raise OutOfMemory
