"""Local contrast normalisation: what stays of a radiograph without exposure, gamma and soft-tissue gradients."""

import numpy as np
from scipy import ndimage

WINDOW_SHARE = 0.20
"""Side of the averaging window as a share of the image side: the knee looks alike at 224 and at 448 pixels."""

STD_FLOOR = 8.0
"""Grey levels (of 255). Below it a region is flat (air, collimator) and its noise is not blown up."""

GREY_PER_STD = 44.0
"""One local standard deviation in grey levels: +-2.9 of them fill 0-255 around 128."""


def local_contrast(grey: np.ndarray) -> np.ndarray:
    """Subtract the local mean, divide by the local standard deviation; 128 is the local mean.

    grey: (H, W) or (N, H, W), uint8 or float, in 0-255. Returns uint8 of the same shape.
    """
    pixels = np.asarray(grey, dtype=np.float32)
    if pixels.ndim == 3:
        return np.stack([local_contrast(image) for image in pixels]) if len(pixels) else pixels.astype(np.uint8)
    mean = _local_mean(pixels)
    deviation = pixels - mean
    # the filter's running sum may leave -1e-7 where a region is flat
    std = np.sqrt(np.maximum(_local_mean(deviation * deviation), 0))
    normalised = 128.0 + GREY_PER_STD * deviation / np.maximum(std, STD_FLOOR)
    return np.clip(np.rint(normalised), 0, 255).astype(np.uint8)


def _local_mean(pixels: np.ndarray) -> np.ndarray:
    """Two box passes: a triangular window without the streaks that a single box draws beside a bright implant."""
    side = max(3, round(WINDOW_SHARE * min(pixels.shape) / 2) | 1)
    once = ndimage.uniform_filter(pixels, side, mode="nearest")
    return ndimage.uniform_filter(once, side, mode="nearest")
