"""Fixed changes of radiographs that show how far a metric falls. Batched, on the CPU.

`augmentation.py` draws the amount of each change; here it is fixed, and only its direction is drawn for each image.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from knee_siglip.pairs.augmentation import add_noise, expose, move
from knee_siglip.pairs.randomness import uniform

Change = Callable[[Tensor, Tensor], Tensor]
"""Pixels (B, S, S) uint8 and keys (B,) of `randomness.sample_keys` to pixels (B, S, S) float32, 0-255. Equal keys give
equal changes, whatever else is in the batch."""


@dataclass(frozen=True)
class Disturbance:
    """condition: `rotation`; level: `10 degrees`."""

    condition: str
    level: str
    change: Change


def shift(share: float) -> Change:
    """Move by a share of the side, in any direction."""

    def change(pixels: Tensor, keys: Tensor) -> Tensor:
        direction = 2 * math.pi * uniform(keys, 1)
        by = share * torch.cat([direction.cos(), direction.sin()], dim=1)
        none = torch.zeros(len(pixels))
        return move(pixels.to(torch.float32), none, none + 1, by)

    return change


def rotation(degrees: float) -> Change:
    """Rotate about the centre, clockwise or anticlockwise."""

    def change(pixels: Tensor, keys: Tensor) -> Tensor:
        sign = torch.where(uniform(keys, 1)[:, 0] < 0.5, -1.0, 1.0)
        none = torch.zeros(len(pixels))
        return move(pixels.to(torch.float32), math.radians(degrees) * sign, none + 1, torch.zeros(len(pixels), 2))

    return change


def _exposure(log_gamma: float = 0.0, greys: float = 0.0) -> Change:
    def change(pixels: Tensor, _: Tensor) -> Tensor:
        ones = torch.ones(len(pixels))
        return expose(pixels, log_gamma * ones, ones, greys * ones)

    return change


def gamma(exponent: float) -> Change:
    """Brighter below 1, darker above."""
    return _exposure(log_gamma=math.log(exponent))


def brightness(share: float) -> Change:
    """Add a share of the grey range; what leaves it is clipped."""
    return _exposure(greys=255 * share)


def noise(share: float) -> Change:
    """White noise; its standard deviation is a share of the grey range."""

    def change(pixels: Tensor, keys: Tensor) -> Tensor:
        sigma = torch.full((len(pixels),), 255 * share)
        return add_noise(pixels.to(torch.float32), sigma, uniform(keys, 1)[:, 0])

    return change


def jpeg(quality: int) -> Change:
    """Save as a JPEG file and read it back."""
    return lambda pixels, _: torch.from_numpy(
        np.stack([through_jpeg(image, quality) for image in pixels.numpy()]).astype(np.float32)
    )


def inversion() -> Change:
    """Black for white."""
    return lambda pixels, _: 255 - pixels.to(torch.float32)


DISTURBANCES = (
    Disturbance("shift", "5 % of the side", shift(0.05)),
    Disturbance("shift", "10 % of the side", shift(0.1)),
    Disturbance("rotation", "5 degrees", rotation(5)),
    Disturbance("rotation", "10 degrees", rotation(10)),
    Disturbance("rotation", "15 degrees", rotation(15)),
    Disturbance("exposure", "gamma 0.7", gamma(0.7)),
    Disturbance("exposure", "gamma 1.4", gamma(1.4)),
    Disturbance("exposure", "15 % darker", brightness(-0.15)),
    Disturbance("exposure", "15 % brighter", brightness(0.15)),
    Disturbance("noise", "5 % of the grey range", noise(0.05)),
    Disturbance("noise", "10 % of the grey range", noise(0.1)),
    Disturbance("jpeg", "quality 30", jpeg(30)),
    Disturbance("jpeg", "quality 10", jpeg(10)),
    Disturbance("inversion", "black for white", inversion()),
)
"""Positioning, exposure and export that a reader would still accept; inversion is how some viewers can show images."""


def through_jpeg(grey: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (H, W) as it comes back from a JPEG file of this quality."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
