"""A radiograph beside itself under a heat map, as one small JPEG."""

import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from knee_siglip.metrics.grounding import evidence

SIDE = 208
"""Side of each of the two pictures in pixels, as of the page's other pictures."""

GAP = 4

QUALITY = 75

OPACITY = 0.6
"""Opacity of the map where it is highest; without evidence for the phrase the radiograph stays as it is."""

BOX = (90, 220, 255)

COLOURS = "inferno"


def draw_overlay(pixels: np.ndarray, heat: np.ndarray, boxes: np.ndarray) -> bytes:
    """JPEG file: the image, and the image under the evidence in `heat`, with the boxes in both.

    pixels: (S, S) uint8 as the encoder sees it; heat: (S, S); boxes: (K, 4), left, top, right, bottom in pixels.
    """
    plain = np.repeat(pixels[:, :, None], 3, axis=2).astype(np.float64)
    strength = evidence(heat)
    colours = 255 * matplotlib.colormaps[COLOURS](strength)[:, :, :3]
    opacity = OPACITY * strength[:, :, None]
    halves = [_shown(image, boxes) for image in (plain, (1 - opacity) * plain + opacity * colours)]
    sheet = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    sheet.paste(halves[0], (0, 0))
    sheet.paste(halves[1], (SIDE + GAP, 0))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def enlarge(patches: np.ndarray, side: int) -> np.ndarray:
    """A map over patches (G, G) to one over pixels (side, side), bilinear."""
    return np.asarray(Image.fromarray(patches).resize((side, side), Image.Resampling.BILINEAR))


def _shown(rgb: np.ndarray, boxes: np.ndarray) -> Image.Image:
    """(S, S, 3), 0-255, in the size of the page with outlines."""
    image = Image.fromarray(rgb.round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    outlines = ImageDraw.Draw(image)
    for box in np.clip(boxes * SIDE / len(rgb), 0, SIDE - 1):
        outlines.rectangle(box.tolist(), outline=BOX)
    return image
