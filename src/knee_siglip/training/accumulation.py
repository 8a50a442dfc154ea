"""Gradient caching: a contrastive group encoded in pieces, on one or several ranks, with the whole group's gradients.

Source: Gao et al. 2021 (arXiv:2101.06983). Encode without a graph, differentiate the loss by the embeddings, then
encode each piece again with a graph and push those gradients through it. The loss sees every image with every text, so
the gradients of all parameters, logit scale and bias included, do not depend on the pieces.

The second pass must draw the same augmentation and dropout as the first: both come from each sample's own key
(`pairs/randomness.py`), so no generator is rewound.
"""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from knee_siglip.core.errors import UserError
from knee_siglip.training.distributed import OUTSIDE_ENCODING, Ranks
from knee_siglip.training.encoder import Embeds, LocalBatch, PairEncoder

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass
class EncodedBatch:
    """Embeddings (m, D) of a local batch, as leaves whose `.grad` autograd fills with the loss's gradients.

    `graph`: the same embeddings with the encoders' graph, if they were encoded in one piece.
    """

    local: LocalBatch
    image_embeds: Tensor
    text_embeds: Tensor
    graph: Embeds | None


class GradientCache:
    """Encodes local batches, and propagates the gradients of their embeddings to the parameters.

    Args:
        micro_batch_size: pairs that this rank encodes with a graph at a time; halved when memory runs out, with the
            same result.
    """

    def __init__(self, encoder: PairEncoder, ranks: Ranks, micro_batch_size: int) -> None:
        self.encoder, self.ranks, self.micro_batch_size = encoder, ranks, micro_batch_size
        self._announced = micro_batch_size
        self._wrapped = ranks.wrap(encoder)

    def encode(self, local: LocalBatch) -> EncodedBatch:
        """Embed a local batch.

        Raises:
            UserError: not even one pair fits into memory.
        """
        return self._until_it_fits(local, lambda: self._encode(local))

    def backward(self, encoded: EncodedBatch) -> None:
        """Propagate the embeddings' `.grad` to the parameters' `.grad`, which is the same on every rank.

        Raises:
            UserError: not even one pair fits into memory.
        """
        image_grads, text_grads = encoded.image_embeds.grad, encoded.text_embeds.grad
        assert image_grads is not None
        assert text_grads is not None
        # DDP averages over the ranks, but the gradient of the group is their sum
        grads = self.ranks.size * image_grads, self.ranks.size * text_grads
        if self.ranks.size == 1:
            self._until_it_fits(encoded.local, lambda: self._push_last(self._encode_again(encoded, grads), grads))
        else:
            last = encoded.graph or self._until_it_fits(encoded.local, lambda: self._encode_again(encoded, grads))
            # from here on ranks exchange gradients and wait for each other, so no piece can be repeated
            self._push_last(last, grads)
        if self.micro_batch_size < self._announced and self.ranks.is_first:
            logger.warning(
                "out of GPU memory: each device now encodes %d pairs at a time, not %d; the result stays the same "
                "(set train.micro_batch_size: %d to skip this search)",
                self.micro_batch_size,
                self._announced,
                self.micro_batch_size,
            )
        self._announced = self.micro_batch_size

    def _encode(self, local: LocalBatch) -> EncodedBatch:
        pieces = local.pieces(self.micro_batch_size)
        if len(pieces) == 1:
            images, texts = self._wrapped(*self.encoder.inputs(local, pieces[0]))
            return EncodedBatch(local, _leaf(images), _leaf(texts), graph=(images, texts))
        parts = self.encoder.encode_all(local, pieces)
        image_embeds = torch.cat([images for images, _ in parts])
        text_embeds = torch.cat([texts for _, texts in parts])
        return EncodedBatch(local, _leaf(image_embeds), _leaf(text_embeds), graph=None)

    def _encode_again(self, encoded: EncodedBatch, grads: Embeds) -> Embeds:
        """Second pass: push the gradients through all pieces but the last, which is only encoded."""
        if encoded.graph is not None:
            graph, encoded.graph = encoded.graph, None  # autograd goes through a graph once
            return graph
        *others, last = encoded.local.pieces(self.micro_batch_size)
        for rows in others:
            # each rank accumulates on its own; DDP exchanges gradients once, with the last piece
            alone = self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()
            with alone:
                _push(self._wrapped(*self.encoder.inputs(encoded.local, rows)), grads, rows)
        embeds: Embeds = self._wrapped(*self.encoder.inputs(encoded.local, last))
        return embeds

    def _push_last(self, embeds: Embeds, grads: Embeds) -> None:
        _push(embeds, grads, slice(len(grads[0]) - len(embeds[0]), None))

    def _until_it_fits(self, local: LocalBatch, work: Callable[[], Result]) -> Result:
        """Result of `work`; when any rank runs out of memory, all ranks repeat it in smaller pieces."""
        while True:
            results: list[Result] = []
            is_full = False
            try:
                results.append(work())
            except torch.OutOfMemoryError:
                is_full = True  # handled below: until the handler ends, the traceback keeps what filled the memory
            # ranks with room must not wait in an exchange for one without
            if not self.ranks.any(is_full):
                return results[0]
            self._halve(local)

    def _halve(self, local: LocalBatch) -> None:
        largest = min(self.micro_batch_size, local.largest)
        if largest == 1:
            raise UserError(
                "not even one pair fits into the GPU's memory; lower image_size or model.max_text_length, or set "
                "train.gradient_checkpointing.vision and .text to true"
            )
        self.micro_batch_size = math.ceil(largest / 2)
        for name, parameter in self.encoder.named_parameters():
            if name not in OUTSIDE_ENCODING:  # those come from the loss alone and are already right
                parameter.grad = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _leaf(embeds: Tensor) -> Tensor:
    return embeds.detach().requires_grad_()


def _push(embeds: Embeds, grads: Embeds, rows: slice) -> None:
    """Propagate the gradients of a piece's embeddings to the parameters."""
    # a frozen tower without a trained projection has no graph
    live = [(out, grad[rows]) for out, grad in zip(embeds, grads, strict=True) if out.requires_grad]
    torch.autograd.backward([out for out, _ in live], [grad for _, grad in live])
