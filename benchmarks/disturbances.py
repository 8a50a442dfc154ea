"""What can happen to a radiograph before it reaches us without changing whether it is inverted."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from knee_siglip.pairs.disturbance import through_jpeg

Disturbance = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""uint8 (H, W) and a random source to uint8 (H', W')."""


def gamma(exponent: float) -> Disturbance:
    """Another gamma."""
    return lambda grey, _: np.rint(255 * (grey / 255.0) ** exponent).astype(np.uint8)


def exposure(gain: float, offset: float) -> Disturbance:
    """Another exposure or window; what leaves 0 to 255 is clipped."""
    return lambda grey, _: np.clip(grey * gain + offset, 0, 255).astype(np.uint8)


def crop(share: float) -> Disturbance:
    """A window of `share` of height and width, anywhere."""

    def apply(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = (int(side * share) for side in grey.shape)
        top = random.integers(0, grey.shape[0] - height + 1)
        left = random.integers(0, grey.shape[1] - width + 1)
        return grey[top : top + height, left : left + width]

    return apply


def border(value: int, least: float, most: float, sides: str = "tblr") -> Disturbance:
    """A border of one grey, on each of `sides` between `least` and `most` times the image's side wide."""

    def apply(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
        width = {side: random.uniform(least, most) if side in sides else 0.0 for side in "tblr"}
        rows, columns = grey.shape
        pads = (int(rows * width["t"]), int(rows * width["b"])), (int(columns * width["l"]), int(columns * width["r"]))
        return np.pad(grey, pads, constant_values=value)

    return apply


def tilt(value: int) -> Disturbance:
    """Turned by up to 12 degrees; the corners are filled with `value`."""

    def apply(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
        angle = float(random.uniform(-12, 12))
        return np.asarray(Image.fromarray(grey).rotate(angle, Image.Resampling.BILINEAR, fillcolor=value))

    return apply


def marker(value: int) -> Disturbance:
    """A solid square of a sixth of the image at its left or right side."""

    def apply(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
        marked = grey.copy()
        height, width = grey.shape
        top, left = random.integers(0, height * 3 // 4), random.choice([0, width * 4 // 5])
        marked[top : top + height // 6, left : left + width // 6] = value
        return marked

    return apply


def resize(width: int, height: int) -> Disturbance:
    """Any other size, the aspect ratio not kept."""
    return lambda grey, _: np.asarray(Image.fromarray(grey).resize((width, height)))


def jpeg(quality: int) -> Disturbance:
    """Through JPEG and back."""
    return lambda grey, _: through_jpeg(grey, quality)


def noise(deviation: float) -> Disturbance:
    """Independent Gaussian noise."""
    return lambda grey, random: np.clip(grey + random.normal(0, deviation, grey.shape), 0, 255).astype(np.uint8)


def both(first: Disturbance, second: Disturbance) -> Disturbance:
    """One after the other."""
    return lambda grey, random: second(first(grey, random), random)


DISTURBANCES: dict[str, Disturbance] = {
    "as it is": lambda grey, _: grey,
    "gamma 0.5": gamma(0.5),
    "gamma 2": gamma(2.0),
    "half as bright": exposure(0.5, 0),
    "60 grey levels brighter": exposure(1, 60),
    "contrast x 1.5, clipped": exposure(1.5, -40),
    "contrast x 0.15": exposure(0.15, 100),
    "crop 80 %": crop(0.8),
    "crop 60 %": crop(0.6),
    "black border": border(0, 0.03, 0.3),
    "white border": border(255, 0.03, 0.3),
    "grey border": border(128, 0.03, 0.3),
    "black bars left and right": border(0, 0.5, 0.5, "lr"),
    "white bars left and right": border(255, 0.5, 0.5, "lr"),
    "black bars above and below": border(0, 0.5, 0.5, "tb"),
    "white bars above and below": border(255, 0.5, 0.5, "tb"),
    "black bar on one side": border(0, 0.2, 0.2, "l"),
    "white bar on one side": border(255, 0.2, 0.2, "t"),
    "both knees on one film": lambda grey, _: np.hstack([grey, grey[:, ::-1]]),
    "tilted, black corners": tilt(0),
    "tilted, white corners": tilt(255),
    "tilted black collimator": both(border(0, 0.03, 0.3), tilt(0)),
    "tilted white collimator": both(border(255, 0.03, 0.3), tilt(255)),
    "white marker": marker(255),
    "black marker": marker(0),
    "64 x 64": resize(64, 64),
    "300 x 600": resize(300, 600),
    "1000 x 700": resize(1000, 700),
    "JPEG quality 20": jpeg(20),
    "noise of 8 grey levels": noise(8),
}
