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
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from knee_siglip.core.errors import UserError
from knee_siglip.model.device import is_out_of_memory
from knee_siglip.training.distributed import GradientSum, Ranks
from knee_siglip.training.encoder import Embeds, LocalBatch, PairEncoder, pad_texts
from knee_siglip.training.graphs import Graphs

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

OUTSIDE_ENCODING = ("model.logit_scale", "model.logit_bias")
"""Parameters of a `PairEncoder` that take no part in encoding: their gradients come from the loss alone, which is the
same on every rank."""


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
        graphs: record CUDA graphs of groups that are encoded in one piece, on one GPU.
        micro_batch_size: pairs that each rank encodes with a graph at a time; halved on all ranks when memory runs out
            on one, with the same result.
    """

    def __init__(self, encoder: PairEncoder, ranks: Ranks, micro_batch_size: int, graphs: bool = False) -> None:
        self.encoder, self.ranks, self.micro_batch_size = encoder, ranks, micro_batch_size
        self._announced = micro_batch_size
        self._encoding = [
            parameter
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and name not in OUTSIDE_ENCODING
        ]
        self._sum = GradientSum(self._encoding, ranks)
        self.graphs = Graphs(encoder, self._encoding, graphs and ranks.size == 1, state=lambda: encoder.buffer)

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
        grads = image_grads, text_grads
        self._until_it_fits(encoded.local, lambda: self._push_all(encoded, grads))
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
            inputs = self.encoder.inputs(local, pieces[0])
            images, texts = self.graphs(*(pad_texts(*inputs) if self.graphs.is_on else inputs))
            return EncodedBatch(local, _leaf(images), _leaf(texts), graph=(images, texts))
        parts = self.encoder.encode_all(local, pieces)
        image_embeds = torch.cat([images for images, _ in parts])
        text_embeds = torch.cat([texts for _, texts in parts])
        return EncodedBatch(local, _leaf(image_embeds), _leaf(text_embeds), graph=None)

    def _push_all(self, encoded: EncodedBatch, grads: Embeds) -> None:
        """Second pass: push the gradients through all pieces, and sum the parameters' over the ranks."""
        graph, encoded.graph = encoded.graph, None  # autograd goes through a graph once
        *others, last = encoded.local.pieces(self.micro_batch_size)
        with self._sum.exchange():
            for rows in others:
                _push(self.encoder(*self.encoder.inputs(encoded.local, rows)), grads, rows)
            embeds = graph or self.encoder(*self.encoder.inputs(encoded.local, last))
            self._sum.begin_last_piece()
            _push(embeds, grads, last)

    def _until_it_fits(self, local: LocalBatch, work: Callable[[], Result]) -> Result:
        """Result of `work`; when any rank runs out of memory, all ranks repeat it in smaller pieces."""
        while True:
            results: list[Result] = []
            is_full = False
            try:
                results.append(work())
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
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
        self.graphs.stop()
        for parameter in self._encoding:  # the other gradients come from the loss alone and are already right
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
