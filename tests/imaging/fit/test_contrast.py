"""Local contrast: exposure and slow gradients go, edges stay."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from threadpoolctl import threadpool_limits

from knee_siglip.imaging.fit.contrast import GREY_PER_STD, STD_FLOOR, WINDOW_SHARE, _Axis, _Window, local_contrast
from knee_siglip.sample.findings import Labels
from knee_siglip.sample.radiograph import draw_knee


def _knee() -> np.ndarray:
    return draw_knee(np.random.default_rng(0), Labels("left", 2, "medial", "normal", False, None), 512)[0]


def _at(size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(_knee()).resize((size, size), Image.Resampling.LANCZOS))


def _mean(pixels: np.ndarray) -> np.ndarray:
    side = max(3, round(WINDOW_SHARE * min(pixels.shape) / 2) | 1)
    return ndimage.uniform_filter(ndimage.uniform_filter(pixels, side, mode="nearest"), side, mode="nearest")


def _reference(grey: np.ndarray) -> np.ndarray:
    """What is meant, at every pixel."""
    deviation = grey - _mean(grey.astype(float))
    std = np.maximum(np.sqrt(np.maximum(_mean(deviation**2), 0)), STD_FLOOR)
    return np.clip(np.rint(128 + GREY_PER_STD * deviation / std), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [56, 224, 448, 700])
def test_is_the_reference_but_for_a_grey(size: int) -> None:
    difference = np.abs(local_contrast(_at(size)).astype(int) - _reference(_at(size)))
    assert difference.mean() < 0.3
    assert (difference > 1).mean() < 0.02
    assert difference.max() <= 8


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 7), (3, 500), (500, 3), (60, 90)])
def test_any_shape_is_near_the_reference(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    assert np.abs(local_contrast(grey).astype(int) - _reference(grey)).max() <= 2


def test_extreme_greys_do_not_overflow_the_exact_sums() -> None:
    halves = np.zeros((224, 224), dtype=np.uint8)
    halves[:, 112:] = 255
    assert np.abs(local_contrast(halves).astype(int) - _reference(halves)).mean() < 0.3


def test_every_bit_is_the_same_with_any_number_of_threads() -> None:
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(local_contrast(_at(448)))
    assert np.array_equal(*found)


@pytest.mark.parametrize("size", [224, 448, 600])
def test_sums_in_single_precision_are_exact(size: int) -> None:
    """Double precision, where they are exact in any case, gives the same bits."""
    single = _Window.of(size, size)
    double = replace(single, rows=_in_double(single.rows), columns=_in_double(single.columns))
    assert single.rows.sums.dtype == np.float32
    extreme = np.where(np.random.default_rng(0).random((size, size)) < 0.9, 255 * single.unit, 0).astype(np.float32)
    for peak in (255 * single.unit, (255 * single.unit) ** 2):
        pixels = np.rint(extreme * np.float32(peak / extreme.max()) / single.unit) * np.float32(single.unit)
        average = single.averages(pixels, peak)
        assert np.array_equal(average, double.averages(pixels.astype(float), peak).astype(np.float32))
        assert np.array_equal(single.interpolate(average), double.interpolate(average.astype(float)))


def _in_double(axis: _Axis) -> _Axis:
    return _Axis(axis.sums.astype(float), axis.weights.astype(float))


def test_a_flat_picture_becomes_its_local_mean() -> None:
    for level in (0, 37, 255):
        assert (local_contrast(np.full((64, 64), level, dtype=np.uint8)) == 128).all()


def test_flat_regions_beside_structure_raise_no_warning() -> None:
    image = _at(224).copy()
    image[:60] = 0
    with np.errstate(all="raise"):
        changed = local_contrast(image)
    assert (changed[:5] == 128).all()


def test_exposure_does_not_matter() -> None:
    image = _at(224).astype(np.float32)
    dimmed = 0.5 * image + 40
    difference = local_contrast(image).astype(int) - local_contrast(dimmed).astype(int)
    assert np.percentile(np.abs(difference), 90) < 30


def test_looks_alike_at_224_and_448() -> None:
    small = local_contrast(_at(224)).astype(float)
    large = Image.fromarray(local_contrast(_at(448))).resize((224, 224), Image.Resampling.BOX)
    assert np.corrcoef(small.ravel(), np.asarray(large, dtype=float).ravel())[0, 1] > 0.9
