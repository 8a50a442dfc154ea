"""A radiograph beside itself under a heat map with its colour scale, as one small JPEG."""

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 208
"""Side of each of the two pictures in pixels, as of the page's other pictures."""

GAP = 4
BAR = 12
"""Width of the colour scale in pixels."""

LEGEND = 44
"""Width of the colour scale with its figures."""

QUALITY = 75

OPACITY = 0.6
"""Opacity of the map where it is highest; without evidence for the phrase the radiograph stays as it is."""

BOX = (90, 220, 255)

COLOURS = "inferno"


@dataclass(frozen=True)
class Scale:
    """full: the heat that has the last colour. unit: of the heat. ticks: figures beside the colours."""

    full: float
    unit: str
    ticks: tuple[float, ...]


LOG_ODDS = Scale(3.0, "log-odds", (0, 1, 2, 3))
"""The same in every picture, so that maps compare: at 3, hiding a place divides the odds of the phrase by 20."""

OF_PEAK = Scale(1.0, "of peak", (0, 0.5, 1))
"""Of a method whose values have no unit."""

LEAST = 0.5
"""Log-odds that the strongest place must be worth, else the phrase is nowhere: a change of the odds by 1.6."""

MARGIN = 1.0
"""Log-odds by which the whole image must fit the phrase better than the text that it is held against.

Chosen on validation images (`benchmarks/grounding_phrases.py`): any text, an absurd one too, fits a third of the images
better than "normal" does, but few by so much.
"""


def missing_reason(heat: np.ndarray, margin: float, against: str) -> str:
    """Why a phrase is nowhere in an image, "" where it is somewhere.

    heat: its map in log-odds. margin: log-odds of the whole image for the phrase rather than `against`.
    """
    if margin < MARGIN:
        return f"the image fits {against!r} about as well, or better"
    if heat.max() < LEAST:
        return f"no place changes its log-odds by {LEAST}"
    return ""


def draw_overlay(
    pixels: np.ndarray, heat: np.ndarray, boxes: np.ndarray, scale: Scale = LOG_ODDS, missing: bool = False
) -> bytes:
    """JPEG file: the image, the image under what `heat` says for the phrase, with the boxes in both, and the colours.

    pixels: (S, S) uint8 as the encoder sees it; heat: (S, S); boxes: (K, 4), left, top, right, bottom in pixels.
    missing: the phrase is nowhere, so that no heat is shown.
    """
    plain = np.repeat(pixels[:, :, None], 3, axis=2).astype(np.float64)
    colours, opacity = colour(np.zeros_like(heat) if missing else heat, scale)
    halves = [_shown(image, boxes) for image in (plain, (1 - opacity) * plain + opacity * colours)]
    sheet = Image.new("RGB", (2 * (SIDE + GAP) + LEGEND, SIDE), "white")
    sheet.paste(halves[0], (0, 0))
    sheet.paste(halves[1], (SIDE + GAP, 0))
    if missing:
        ImageDraw.Draw(sheet).text((SIDE + GAP + 6, 4), "not found", fill=BOX, font=ImageFont.load_default(16))
    sheet.paste(_legend(scale), (2 * (SIDE + GAP), 0))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def colour(heat: np.ndarray, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) to colours (H, W, 3), 0-255, and their opacity (H, W, 1)."""
    strength = np.clip(heat / scale.full, 0, 1)
    return 255 * matplotlib.colormaps[COLOURS](strength)[:, :, :3], OPACITY * strength[:, :, None]


def enlarge(patches: np.ndarray, side: int) -> np.ndarray:
    """A map over patches (G, G) to one over pixels (side, side), bilinear."""
    return np.asarray(Image.fromarray(patches).resize((side, side), Image.Resampling.BILINEAR))


def _legend(scale: Scale) -> Image.Image:
    """The colours from bottom to top with their figures."""
    legend = Image.new("RGB", (LEGEND, SIDE), "white")
    top, bottom = 20, SIDE - 8
    strength = np.linspace(1, 0, bottom - top)[:, None].repeat(BAR, axis=1)
    colours = 255 * matplotlib.colormaps[COLOURS](strength)[:, :, :3]
    legend.paste(Image.fromarray(colours.round().astype(np.uint8)), (4, top))
    pen, font = ImageDraw.Draw(legend), ImageFont.load_default(10)
    pen.text((2, 2), scale.unit, fill="black", font=font)
    for tick in scale.ticks:
        y = bottom - (bottom - top) * tick / scale.full
        pen.text((4 + BAR + 4, y - 6), f"{tick:g}", fill="black", font=font)
    return legend


def _shown(rgb: np.ndarray, boxes: np.ndarray) -> Image.Image:
    """(S, S, 3), 0-255, in the size of the page with outlines."""
    image = Image.fromarray(rgb.round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    outlines = ImageDraw.Draw(image)
    for box in np.clip(boxes * SIDE / len(rgb), 0, SIDE - 1):
        outlines.rectangle(box.tolist(), outline=BOX)
    return image
