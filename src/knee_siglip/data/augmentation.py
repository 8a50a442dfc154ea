"""Random changes of training radiographs: batched, on the device, never mirrored (left and right are in the text)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.params import AugmentParams


def augment(pixels: Tensor, params: AugmentParams, generator: torch.Generator) -> Tensor:
    """Change each image of a batch by its own random amounts.

    Args:
        pixels: (B, S, S), uint8.
        params: the largest amounts; all zero returns the pixels unchanged.
        generator: on the CPU, so that every device draws the same changes.

    Returns:
        (B, S, S) float32, 0-255.
    """
    changed = pixels.float()
    if params.rotation or params.shift or params.scale:
        changed = _move(changed, params, generator)
    if params.brightness or params.contrast or params.gamma:
        changed = _expose(changed, params, generator)
    if params.noise:
        sigma = _uniform(len(changed), 0, 255 * params.noise, generator).to(changed.device)
        noise = torch.randn(changed.shape, generator=generator).to(changed.device)
        changed = (changed + sigma.view(-1, 1, 1) * noise).clamp(0, 255)
    return changed


def _move(pixels: Tensor, params: AugmentParams, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift; what comes from outside repeats the border, as a collimated edge would."""
    count = len(pixels)
    angle = _uniform(count, -params.rotation, params.rotation, generator) * (math.pi / 180)
    zoom = 1 + _uniform(count, -params.scale, params.scale, generator)
    # affine_grid spans -1..1, so a shift of the whole side is 2.
    shift = 2 * _uniform(2 * count, -params.shift, params.shift, generator).view(count, 2)
    rows = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], dim=1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(rows.to(pixels.device), [count, 1, *pixels.shape[1:]], align_corners=False)
    return F.grid_sample(pixels.unsqueeze(1), grid, padding_mode="border", align_corners=False).squeeze(1)


def _expose(pixels: Tensor, params: AugmentParams, generator: torch.Generator) -> Tensor:
    """Gamma, then contrast around mid-grey, then brightness."""

    def amount(limit: float) -> Tensor:
        return _uniform(len(pixels), -limit, limit, generator).to(pixels.device).view(-1, 1, 1)

    grey = (pixels / 255).clamp(1e-4, 1) ** amount(params.gamma).exp()
    grey = (grey - 0.5) * (1 + amount(params.contrast)) + 0.5 + amount(params.brightness)
    return 255 * grey.clamp(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
