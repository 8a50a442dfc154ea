"""Resizing: Pillow's Lanczos, but exact."""

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from knee_siglip.imaging.fit.resize import BETWEEN, WEIGHT_BITS, _bands, resize
from knee_siglip.sample.findings import Labels
from knee_siglip.sample.radiograph import draw_knee

RNG = np.random.default_rng(0)
SIZES = [
    ((512, 512), (224, 224)),
    ((512, 512), (448, 448)),
    ((300, 200), (56, 37)),
    ((700, 500), (100, 71)),
    ((2000, 1501), (224, 168)),
    ((100, 80), (518, 414)),
    ((3, 500), (1, 224)),
    ((500, 3), (224, 1)),
    ((1, 1), (56, 56)),
]


def scene(height: int, width: int) -> np.ndarray:
    """A drawn knee of any size."""
    knee = draw_knee(np.random.default_rng(0), Labels("left", 2, "medial", "normal", False, None), 256)[0]
    return np.asarray(Image.fromarray(knee).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_is_lanczos_as_pillow_has_it(old, new):
    grey = scene(*old)
    pillow = Image.fromarray(grey).resize(new[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0)
    difference = np.abs(resize(grey, *new).astype(int) - np.asarray(pillow))
    assert difference.mean() < 0.3
    assert (difference > 1).mean() < 0.01


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_flat_picture_stays_flat(old, new, level):
    assert (resize(np.full(old, level, dtype=np.uint8), *new) == level).all()


@pytest.mark.parametrize(("old", "new"), [((512, 512), (224, 224)), ((80, 80), (518, 518))])
def test_every_bit_is_the_same_with_any_number_of_threads(old, new):
    noise = RNG.integers(0, 256, old).astype(np.uint8)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(resize(noise, *new))
    assert np.array_equal(*found)


@pytest.mark.parametrize("length", [1, 37, 56, 223, 224, 448, 518, 1036])
@pytest.mark.parametrize("pixels", [1, 2, 60, 512, 1000])
def test_no_sum_can_leave_the_exact_range(pixels, length):
    sizes = max(np.abs(band.weights).sum(axis=1).max() for band in _bands(pixels, float(pixels), length, 1.0))
    first = 255 * 2**WEIGHT_BITS * sizes
    assert max(first, first * sizes * BETWEEN) < 2**24


def test_the_original_is_not_handed_out():
    grey = scene(64, 64)
    resize(grey, 64, 64)[:] = 0
    assert grey.any()
