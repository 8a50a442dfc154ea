"""Where in an image the model sees a phrase: a map over the image's patches.

A phrase is a direction in the embedding space: a text's embedding, or better its difference from the embeddings of
opposite texts, so that the map shows what tells the finding from a knee without it.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from knee_siglip.model.device import compute_in
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel

Method = Literal["raw", "gradient", "occlusion"]

METHODS: tuple[Method, ...] = get_args(Method)

WINDOW_SHARE = 4
"""By default the hidden window is a quarter of the image's side."""

ATTENTION_AT_ONCE = 2**26
"""Attention weights of all blocks that one backward pass keeps: 256 MiB, and as much for their gradients."""


def phrase_maps(
    model: KneeRadDinoSigLIPModel,
    pixels: Tensor,
    phrases: Sequence[Tensor],
    method: Method = "occlusion",
    window: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Maps of phrases over images; higher values are stronger evidence for the phrase.

    Args:
        model: in evaluation mode.
        pixels: (B, S, S), uint8, on the model's device, as `phrases` are.
        phrases: of each image (P, D), directions in the embedding space.
        method: `raw`, see `patch_embeds`; `gradient`, see `attention_relevance`; `occlusion`, see `occlusion_drops`.
        window: of `occlusion` alone.
        dtype: autocast type of the vision tower; None is the weights' own, which `gradient` always has.

    Returns:
        of each image (P, G, G) float32, G = S / patch size.
    """
    assert len(pixels) == len(phrases), (len(pixels), len(phrases))
    if method == "gradient":
        counts = torch.tensor([len(texts) for texts in phrases])
        images = torch.arange(len(pixels)).repeat_interleave(counts)
        maps = attention_relevance(model, pixels[images.to(pixels.device)], torch.cat(list(phrases)))
        return list(maps.split(counts.tolist()))
    field = compute_in(
        dtype,
        pixels.device,
        lambda: patch_embeds(model, pixels) if method == "raw" else occlusion_drops(model, pixels, window),
    )
    return [torch.einsum("ghd,pd->pgh", at, texts) for at, texts in zip(field, phrases, strict=True)]


@torch.no_grad()
def patch_embeds(model: KneeRadDinoSigLIPModel, pixels: Tensor) -> Tensor:
    """Patch tokens through the projection: (B, S, S) to (B, G, G, D), L2-normalised.

    Products with a text are the cosines of BioViL's maps. But here the projection was trained on the pooled token only,
    so nothing ties a patch token to its place.
    """
    tokens = model.vision.tokens(model.normalise_pixels(pixels))[:, 1:]
    return _grid(model.project_image_features(tokens))


@torch.no_grad()
def occlusion_drops(model: KneeRadDinoSigLIPModel, pixels: Tensor, window: int | None = None) -> Tensor:
    """Change of the image's embedding when a patch is hidden: (B, S, S) to (B, G, G, D).

    A square of the image's mean grey moves over it by half its side; a patch gets the mean over all squares that hide
    it. The product with a phrase is the drop of their similarity. Source: Zeiler and Fergus 2014 (arXiv:1311.2901).

    window: patches along the square's side, at most the whole grid; None: a quarter of the grid.
    """
    patch = model.vision.patch
    side = pixels.shape[-1] // patch
    window = min(window or max(1, side // WINDOW_SHARE), side)
    grey = pixels.float().mean(dim=(1, 2)).round().to(pixels.dtype).view(-1, 1, 1)
    whole = model.get_image_features(model.normalise_grey(pixels))
    drops = whole.new_zeros(len(pixels), side, side, whole.shape[1])
    squares = whole.new_zeros(side, side, 1)
    # half a square apart, the last ones at the edge: every patch is in one
    starts = [*range(0, side - window, max(1, window // 2)), side - window]
    for top, left in itertools.product(starts, starts):
        hidden = pixels.clone()
        hidden[:, top * patch : (top + window) * patch, left * patch : (left + window) * patch] = grey
        drop = whole - model.get_image_features(model.normalise_grey(hidden))
        drops[:, top : top + window, left : left + window] += drop[:, None, None]
        squares[top : top + window, left : left + window] += 1
    return drops / squares


def attention_relevance(model: KneeRadDinoSigLIPModel, pixels: Tensor, phrases: Tensor) -> Tensor:
    """How the similarity of image and phrase depends on the attention to each patch; never negative.

    Each block's attention is multiplied with its gradient, cut at zero and averaged over the heads; the product over
    the blocks, with the residual connections, follows the CLS token back to the patches. Source: Chefer et al. 2021
    (arXiv:2103.15679), section 3.1, equations 5 and 6. Much of it is attention that serves any phrase.

    pixels: (B, S, S), phrases: (B, D). Returns (B, G, G).
    """
    vision = model.vision
    tokens = 1 + (pixels.shape[-1] // vision.patch) ** 2
    at_once = max(1, ATTENTION_AT_ONCE // (len(vision.blocks) * vision.heads * tokens**2))
    parts = zip(pixels.split(at_once), phrases.split(at_once), strict=True)
    with torch.enable_grad():
        relevance = torch.cat([_cls_relevance(model, images, texts) for images, texts in parts])
    return _grid(relevance[:, 1:])


def _cls_relevance(model: KneeRadDinoSigLIPModel, pixels: Tensor, phrases: Tensor) -> Tensor:
    """(B, S, S) and (B, D) to the relevance (B, T) of all tokens for the CLS token."""
    values = model.normalise_pixels(pixels).requires_grad_()  # otherwise a frozen tower keeps no graph
    tokens, attentions = model.vision.tokens_and_attentions(values)
    similarity = (model.project_image_features(tokens[:, 0]) * phrases).sum()
    gradients = torch.autograd.grad(similarity, attentions)
    relevance = torch.zeros_like(tokens[:, :, 0]).detach()
    relevance[:, 0] = 1
    # the CLS token's row of the whole product: from the last block to the first, one row is enough
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        weights = (attention.detach() * gradient).relu().mean(dim=1)
        relevance = relevance + (relevance.unsqueeze(1) @ weights).squeeze(1)
    return relevance


def _grid(tokens: Tensor) -> Tensor:
    """(B, G * G, ...) to (B, G, G, ...), row by row."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (side, side))
