"""What readable images are warned of."""

import numpy as np
import pytest

from knee_siglip.imaging.appearance import appearance_warnings, warnings_of
from knee_siglip.imaging.decode.decoded import Decoded

NOISE = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
FOURTH_ROW = np.arange(96)[:, None] % 4 == 0


@pytest.mark.parametrize(
    ("grey", "checks"),
    [
        (NOISE, set()),
        (NOISE * 0, {"constant_image"}),
        (NOISE // 16, {"flat_image"}),
        (NOISE[:1, :1], {"constant_image"}),
        (np.where(FOURTH_ROW, NOISE // 3, 42).astype(np.uint8), {"flat_image"}),
        (np.where(FOURTH_ROW, 42, NOISE // 3).astype(np.uint8), set()),
    ],
)
def test_images_without_contrast_are_warned_of(grey, checks):
    assert warnings_of(Decoded(grey, 8, "PNG L")).keys() == checks


@pytest.mark.parametrize(("probability", "told"), [(0.4, False), (0.6, True)])
def test_inverted_images_are_warned_of(probability, told):
    warnings = appearance_warnings(60.0, probability, [])
    assert ("0.60" in warnings.get("inverted_image", "")) == told


def test_doubtful_elements_are_named():
    warnings = warnings_of(Decoded(NOISE, 12, "DICOM MONOCHROME2", ("WindowCenter", "HighBit")))
    assert "WindowCenter, HighBit" in warnings["doubtful_elements"]
