"""What looks wrong with a readable image: validation, inference and heat maps warn in the same words."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from knee_siglip.imaging.decode.decoded import Decoded
from knee_siglip.imaging.decode.inversion import inversion_probability
from knee_siglip.imaging.decode.read import decode, read_bytes

logger = logging.getLogger(__name__)

LEVELS = np.arange(256)

FLAT_STD = 15.0
"""Grey levels of 255: below it little contrast is left. 1 % of real knees, legitimate ones among them."""


def appearance_warnings(std: float, inverted: float, doubtful: Sequence[str]) -> dict[str, str]:
    """A sentence for each check that an image does not pass.

    std: of its greys, 0-255; inverted: `inversion_probability`; doubtful: as in `Decoded`.
    """
    warnings = {}
    if std == 0:
        warnings["constant_image"] = "every pixel has the same grey"
    elif std < FLAT_STD:
        warnings["flat_image"] = f"nearly flat: its greys deviate by {std:.1f} of 255"
    if inverted > 0.5:
        warnings["inverted_image"] = (
            f"bright and dark seem exchanged (probability {inverted:.2f}); preprocess.inversion: correct turns such "
            "images round"
        )
    if doubtful:
        warnings["doubtful_elements"] = (
            f"DICOM elements that are missing or unusable and were passed over: {', '.join(doubtful)}"
        )
    return warnings


def warnings_of(image: Decoded) -> dict[str, str]:
    """`appearance_warnings` of a decoded image."""
    std = _least_std(image.grey)
    if std < FLAT_STD + 1:
        counts = np.array(Image.fromarray(image.grey).histogram())  # a quarter of np.std's time
        mean = counts @ LEVELS / image.grey.size
        std = math.sqrt(counts @ (LEVELS - mean) ** 2 / image.grey.size)
    return appearance_warnings(std, inversion_probability(image.grey), image.doubtful)


def _least_std(grey: np.ndarray) -> float:
    """No more than the standard deviation of uint8 (H, W), up to rounding, from every fourth row.

    The squared deviations of all rows add up to more than those of these, which are smallest from their own mean.
    """
    rows = grey[::4].astype(np.float32).ravel()
    squares = float(rows @ rows) - float(rows.sum()) ** 2 / rows.size
    return math.sqrt(max(squares, 0) / grey.size)


def read_with_warnings(path: Path) -> tuple[Decoded, dict[str, str]]:
    """A decoded image file, and its warnings, which are logged.

    Raises:
        ImageError: naming the file and what is wrong with it.
    """
    image = decode(read_bytes(path), path)
    warnings = warnings_of(image)
    for warning in warnings.values():
        logger.warning("%s: %s", path, warning)
    return image, warnings
