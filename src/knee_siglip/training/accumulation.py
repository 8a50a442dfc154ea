"""Gradients of one contrastive batch, encoded in as many pieces as memory asks for.

Gradient caching (Gao et al. 2021, arXiv:2101.06983): encode without a graph, differentiate the loss by the embeddings,
then encode each piece again with a graph and push those gradients through it. Every image meets every text whatever the
pieces, so the gradients of all parameters, logit scale and bias included, are those of the undivided batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from knee_siglip.model.loss import batch_accuracy, sigmoid_loss
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel

Embeds = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """What the encoders see of B pairs.

    `pixels` (B, S, S) grey 0-255; `input_ids` (U, L) of the distinct texts; `text_ids` (B,) each pair's row in them.
    """

    pixels: Tensor
    input_ids: Tensor
    text_ids: Tensor


@dataclass(frozen=True)
class LossAndAccuracy:
    """() tensors on the device, without a graph."""

    loss: Tensor
    accuracy: Tensor


def backward_pairs(
    model: KneeRadDinoSigLIPModel,
    pairs: Pairs,
    micro_batch_size: int,
    *,
    dtype: torch.dtype | None = None,
    multi_positive: bool = True,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> LossAndAccuracy:
    """Add the gradients of the loss over all B pairs to the parameters' `.grad`.

    Args:
        micro_batch_size: pairs that are encoded with a graph at a time.
        dtype: autocast type of the encoders; the loss is float32 all the same.
        scale: the fp16 loss scaling, applied once to the loss.
    """

    def encode(rows: slice) -> Embeds:
        return encode_pairs(model, pairs, rows, dtype)

    count = len(pairs.pixels)
    pieces = [slice(start, start + micro_batch_size) for start in range(0, count, micro_batch_size)]
    if len(pieces) == 1:
        image_embeds, text_embeds = encode(pieces[0])
    else:
        states, image_embeds, text_embeds = _encode_without_graph(encode, pieces, pairs.pixels.device)
    text_ids = pairs.text_ids if multi_positive else None
    loss = sigmoid_loss(image_embeds, text_embeds, model.logit_scale.exp(), model.logit_bias, text_ids)
    scale(loss).backward()
    if len(pieces) > 1:
        _encode_again(encode, pieces, states, image_embeds, text_embeds)
    accuracy = batch_accuracy(image_embeds.detach(), text_embeds.detach(), pairs.text_ids)
    return LossAndAccuracy(loss.detach(), accuracy)


def encode_pairs(model: KneeRadDinoSigLIPModel, pairs: Pairs, rows: slice, dtype: torch.dtype | None) -> Embeds:
    """Image and text embeddings (n, D) of some rows; an impression that several of them share is encoded once."""
    with torch.autocast(pairs.pixels.device.type, dtype=dtype, enabled=dtype is not None):
        image_embeds = model.get_image_features(model.normalise_pixels(pairs.pixels[rows]))
        distinct, place = pairs.text_ids[rows].unique(return_inverse=True)
        # index_select, not brackets: its gradient is summed in a fixed order
        return image_embeds, model.get_text_features(pairs.input_ids[distinct]).index_select(0, place)


def _encode_without_graph(
    encode: Callable[[slice], Embeds], pieces: list[slice], device: torch.device
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Embeddings of all pieces as leaves that collect gradients, and the random state before each piece."""
    states, parts = [], []
    with torch.no_grad():
        for rows in pieces:
            states.append(_random_state(device))
            parts.append(encode(rows))
    image_embeds = torch.cat([image for image, _ in parts]).requires_grad_()
    text_embeds = torch.cat([text for _, text in parts]).requires_grad_()
    return states, image_embeds, text_embeds


def _encode_again(
    encode: Callable[[slice], Embeds],
    pieces: list[slice],
    states: list[list[Tensor]],
    image_embeds: Tensor,
    text_embeds: Tensor,
) -> None:
    """Second pass: the same dropout as in the first, and the loss's gradients pushed through each piece."""
    assert image_embeds.grad is not None
    assert text_embeds.grad is not None
    after = _random_state(image_embeds.device)
    for rows, state in zip(pieces, states, strict=True):
        _restore_random_state(state, image_embeds.device)
        outputs = encode(rows)
        gradients = (image_embeds.grad[rows], text_embeds.grad[rows])
        # a frozen tower without a trained projection behind it has no graph to push through
        live = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if out.requires_grad]
        torch.autograd.backward([out for out, _ in live], [grad for _, grad in live])
    _restore_random_state(after, image_embeds.device)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _restore_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
