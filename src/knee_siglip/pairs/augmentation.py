"""Random changes of training radiographs: batched, on the device. Mirroring changes the text too: `batches.py`."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.pairs.randomness import uniform
from knee_siglip.params.sections import AugmentParams

NOISE_PATTERNS = 2**22

CPU_IMAGES = 8
"""Changed at a time on a CPU. What lies between the steps then stays in its cache: a batch of 64 images at 224 px takes
12 ms instead of 18, and instead of 40 to 100 where its arrays are memory that the system has to clear first."""


def augment(pixels: Tensor, params: AugmentParams, keys: Tensor) -> Tensor:
    """Change each image by random amounts of its own.

    Args:
        pixels: (B, S, S), uint8.
        params: largest amounts; all zero leaves the pixels unchanged.
        keys: (B,) of `randomness.sample_keys`: equal keys, equal changes, whatever else is in the batch.

    Returns:
        (B, S, S) float32, 0-255.
    """
    if not len(pixels):
        return pixels.to(torch.float32)
    drawn = 2 * uniform(keys, 9) - 1
    if pixels.device.type != "cpu":
        return _change(pixels, params, drawn)
    changed = torch.empty(pixels.shape, dtype=torch.float32)
    for part, source, numbers in zip(*(tensor.split(CPU_IMAGES) for tensor in (changed, pixels, drawn)), strict=True):
        part.copy_(_change(source, params, numbers))
    return changed


def _change(pixels: Tensor, params: AugmentParams, drawn: Tensor) -> Tensor:
    """drawn: (B, 9), each image's amounts as shares of the largest, in [-1, 1)."""
    angle, zoom, right, down, gamma, contrast, brightness, noise, pattern = drawn.unbind(dim=1)
    if params.brightness or params.contrast or params.gamma:
        greys = 255 * params.brightness * brightness
        changed = expose(pixels, params.gamma * gamma, 1 + params.contrast * contrast, greys)
    else:
        changed = pixels.to(torch.float32)
    if params.rotation or params.shift or params.scale:
        shift = params.shift * torch.stack([right, down], dim=1)
        changed = move(changed, math.radians(params.rotation) * angle, 1 + params.scale * zoom, shift)
    if params.noise:
        # the amplitude is uniform too, so that some images stay as clean as those of the evaluation
        changed = add_noise(changed, 255 * params.noise * (noise + 1) / 2, (pattern + 1) / 2)
    return changed


def expose(pixels: Tensor, log_gamma: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Gamma, then contrast around mid-grey, then brightness in greys, all (B,): (B, S, S) uint8 to float32."""
    greys = 255 * (torch.arange(256, device=contrast.device) / 255) ** log_gamma.unsqueeze(1).exp()
    table = (contrast.unsqueeze(1) * (greys - 127.5) + 127.5 + brightness.unsqueeze(1)).clamp(0, 255)
    return table.gather(1, pixels.flatten(1).long()).view(pixels.shape)


def move(pixels: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Rotate by radians (B,), scale (B,) and shift by shares of the side (B, 2): (B, S, S) float32.

    Beyond the image the border is repeated, as a collimated edge would be.
    """
    count, side, _ = pixels.shape
    amounts = torch.stack([zoom * angle.cos(), zoom * angle.sin(), 2 * shift[:, 0], 2 * shift[:, 1]])
    cos, sin, right, down = amounts.view(4, -1, 1, 1)
    # -1 to 1 across the image, so a shift of the whole side is 2. F.affine_grid gives the same in ten times the time.
    centres = (2 * torch.arange(side, device=pixels.device) + 1) / side - 1
    x, y = centres.view(1, 1, -1), centres.view(1, -1, 1)
    grid = pixels.new_empty(count, 2, side, side)  # written and read row by row, which is faster than in pairs
    torch.add(cos * x, right - sin * y, out=grid[:, 0])
    torch.add(sin * x, down + cos * y, out=grid[:, 1])
    places = grid.permute(0, 2, 3, 1)
    return F.grid_sample(pixels.unsqueeze(1), places, padding_mode="border", align_corners=False).squeeze(1)


def add_noise(pixels: Tensor, sigma: Tensor, pattern: Tensor) -> Tensor:
    """Add white noise of `sigma` (B,) greys, in place; `pattern` (B,) in [0, 1) chooses each image's noise."""
    count = pixels[0].numel()
    # a view whose rows overlap: one number further is another pattern
    patterns = _noise(count, pixels.device).unfold(0, count, 1)
    noise = patterns.index_select(0, (pattern * NOISE_PATTERNS).long()).view_as(pixels)
    return pixels.addcmul_(noise, sigma.view(-1, 1, 1)).clamp_(0, 255)


@lru_cache(maxsize=2)
def _noise(count: int, device: torch.device) -> Tensor:
    """Standard normal numbers, enough for `NOISE_PATTERNS` patterns of `count`; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NOISE_PATTERNS + count, generator=generator).to(device)
