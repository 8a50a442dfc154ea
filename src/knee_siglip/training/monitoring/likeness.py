"""A limit of likeness: which images are unlike those that a model was trained on.

An image's distance to the training images is divided by that to the same images with their parts in the wrong place:
other anatomy has bone and soft tissue, too, but no joint between them. Training images count as they are and framed and
exposed as another hospital may do it, so that a frame alone makes no image unlike. After the relative Mahalanobis
distance (Ren et al. 2021, arXiv:2106.09022); what was tried, and what it finds, is in docs/decisions.md.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from knee_siglip.model.training_facts import Likeness, relative_distances
from knee_siglip.pairs.augmentation import expose, move
from knee_siglip.pairs.randomness import derived_keys, uniform

WITHIN = 0.985
"""Share of the validation images that lie within the limit (`benchmarks/likeness.py`)."""

TURN, SHIFT, ZOOM, MARGIN = math.radians(12), 0.08, (-0.15, 0.6), 0.2
"""Most that `reframed` turns and moves an image; least and largest log of its field of view; widest margin (sides)."""

GAMMA, CONTRAST = 0.35, 0.2
"""Largest log of the exponent and change of the contrast with which it exposes an image."""


def fit_likeness(groups: tuple[np.ndarray, np.ndarray], val: np.ndarray) -> Likeness | None:
    """Embeddings (N, D) to the distances that tell unlike images; None where they are not finite.

    groups: of the training images, also `reframed`, and `disarranged`. The covariances are shrunk as by Ledoit and Wolf
    2004, since there may be fewer images than dimensions. The limit is taken from images that took no part in them.
    """
    from sklearn.covariance import LedoitWolf  # half a second, once per training

    if not all(np.isfinite(embeds).all() for embeds in (*groups, val)):
        return None
    known = [embeds.astype(np.float64) for embeds in groups]
    mean = np.stack([embeds.mean(axis=0) for embeds in known])
    precision = np.stack([LedoitWolf().fit(embeds).precision_ for embeds in known])
    limit = float(np.quantile(relative_distances(val, mean, precision), WITHIN, method="higher"))
    return Likeness(mean, precision, limit) if 0 < limit < np.inf else None


def reframed(pixels: Tensor, keys: Tensor) -> Tensor:
    """(B, S, S) uint8 as another hospital may frame and expose them; equal keys (B,) give equal changes.

    Beyond the image its border is repeated; half of the margins have its median grey.
    """
    drawn = 2 * uniform(keys, 10) - 1
    angle, zoom, right, down, gamma, contrast = drawn[:, :6].unbind(dim=1)
    exposed = expose(pixels, GAMMA * gamma, 1 + CONTRAST * contrast, torch.zeros(len(pixels)))
    field = (ZOOM[0] + (ZOOM[1] - ZOOM[0]) * (zoom + 1) / 2).exp()
    moved = move(exposed, TURN * angle, field, SHIFT * torch.stack([right, down], dim=1))
    side = pixels.shape[1]
    place = (torch.arange(side) + 0.5) / side
    top, bottom, left, right = (MARGIN * drawn[:, 6:]).clamp_min(0).unsqueeze(2).unbind(dim=1)
    rows, columns = (place > top) & (place < 1 - bottom), (place > left) & (place < 1 - right)
    grey = pixels.flatten(1).median(dim=1).values.view(-1, 1, 1).to(torch.float32)
    return torch.where(rows.unsqueeze(2) & columns.unsqueeze(1), moved, grey).round().to(torch.uint8)


def disarranged(pixels: Tensor, keys: Tensor) -> Tensor:
    """(B, S, S) uint8 with the parts in the wrong place, each in one of the `WAYS`, and `reframed`."""
    keys = derived_keys(keys, 1)  # other frames than those of the images as they are
    changed = torch.empty_like(pixels)
    for way, change in enumerate(WAYS):
        chosen = keys.remainder(len(WAYS)) == way
        changed[chosen] = change(pixels[chosen], keys[chosen])
    return reframed(changed, keys)


def _enlarged(pixels: Tensor, keys: Tensor) -> Tensor:
    """A part of a third to half the side, from anywhere."""
    drawn = uniform(keys, 13)[:, 10:]
    none = torch.zeros(len(pixels))
    part = move(pixels.to(torch.float32), none, 0.3 + 0.2 * drawn[:, 0], 0.5 * drawn[:, 1:] - 0.25)
    return part.round().to(torch.uint8)


def _in_stripes(pixels: Tensor, order: Sequence[int]) -> Tensor:
    """Stripes of rows, and of columns, in another order."""
    stripes = torch.arange(pixels.shape[1]).tensor_split(len(order))
    places = torch.cat([stripes[number] for number in order])
    return pixels[:, places][:, :, places]


def _four_small(pixels: Tensor) -> Tensor:
    side = pixels.shape[1]
    return pixels[:, ::2, ::2].repeat(1, 2, 2)[:, :side, :side]


WAYS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda pixels, _: _in_stripes(pixels, (1, 0)),
    lambda pixels, _: _in_stripes(pixels, (2, 0, 3, 1)),
    _enlarged,
    lambda pixels, _: pixels.rot90(1, (1, 2)),
    lambda pixels, _: pixels.flip(1),
    lambda pixels, _: _four_small(pixels),
)
"""To halves and to quarters exchanged, a part alone, a quarter turn, upside down, and four small images."""
