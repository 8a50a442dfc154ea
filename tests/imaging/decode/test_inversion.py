"""Telling inverted radiographs from normal ones, on phantoms: two bright bones, a dark gap, darker ground."""

import numpy as np
import pytest
from PIL import Image

from knee_siglip.imaging.decode.inversion import features, inversion_probability


def knee(height: int = 224, width: int = 224) -> np.ndarray:
    """uint8 (height, width): bright femur and tibia, a dark joint space, ground that darkens towards the sides."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    picture = 90 - 50 * np.abs(x)
    bone = (np.abs(x) < 0.7 - 0.1 * np.abs(y)) & (np.abs(y - 0.1 * np.cos(4 * x)) > 0.06)
    picture[bone] = 170
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def bordered(grey: np.ndarray, value: int) -> np.ndarray:
    return np.pad(grey, ((40, 60), (50, 30)), constant_values=value)


def tilted(grey: np.ndarray, value: int) -> np.ndarray:
    return np.asarray(Image.fromarray(bordered(grey, value)).rotate(8, fillcolor=value))


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (512, 512), (300, 900), (900, 300), (2000, 1600)])
def test_inverted_copy_is_told_from_the_original_at_any_size(size: tuple[int, int]) -> None:
    grey = knee(*size)
    assert inversion_probability(grey) < 0.05
    assert inversion_probability(255 - grey) > 0.7


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_gamma_does_not_matter(exponent: float) -> None:
    for grey, inverted in ((knee(), False), (255 - knee(), True)):
        changed = np.rint(255 * (grey / 255) ** exponent).astype(np.uint8)
        assert (inversion_probability(changed) > 0.5) == inverted


def test_faint_image_is_judged_like_a_good_one() -> None:
    for grey, inverted in ((knee(), False), (255 - knee(), True)):
        faint = np.rint(100 + 0.2 * grey).astype(np.uint8)
        assert (inversion_probability(faint) > 0.5) == inverted


@pytest.mark.parametrize("letterbox", [0, 100])
@pytest.mark.parametrize("cropped", [0, 60])
def test_two_knees_on_one_film_are_not_called_inverted(cropped: int, letterbox: int) -> None:
    """Cropped within the bone at the outer sides, they have all their background in the middle."""
    one = knee(161, 320)[:, cropped:]
    film = np.pad(np.hstack([one, one[:, ::-1]]), ((letterbox, letterbox), (0, 0)))
    assert inversion_probability(film) < 0.5


def test_two_inverted_knees_on_one_film_are_found() -> None:
    assert inversion_probability(255 - np.hstack([knee(161, 320)] * 2)) > 0.9


@pytest.mark.parametrize("value", [0, 128, 255])
def test_border_of_any_grey_is_left_out(value: int) -> None:
    assert inversion_probability(bordered(knee(), value)) < 0.05
    assert inversion_probability(bordered(255 - knee(), value)) > 0.95


@pytest.mark.parametrize("value", [0, 255])
def test_tilted_frame_is_left_out(value: int) -> None:
    assert inversion_probability(tilted(knee(), value)) < 0.5
    assert inversion_probability(tilted(255 - knee(), value)) > 0.5


def test_features_change_their_sign_with_the_image() -> None:
    np.testing.assert_allclose(features(255 - knee()), -features(knee()), atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (5, 4000), (224, 224)])
@pytest.mark.parametrize("value", [0, 127, 255])
def test_constant_image_of_any_shape_is_not_inverted(size: tuple[int, int], value: int) -> None:
    assert inversion_probability(np.full(size, value, dtype=np.uint8)) < 0.5


@pytest.mark.parametrize("size", [(1, 500), (3, 4000), (4000, 3), (7, 7)])
def test_extreme_shape_gives_a_probability(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    assert 0 <= inversion_probability(noise) <= 1


def test_noise_is_not_called_inverted() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    assert inversion_probability(noise) < 0.5


def test_view_that_is_not_contiguous_is_judged_alike() -> None:
    wide = np.repeat(knee(), 2, axis=1)
    assert inversion_probability(wide[:, ::2]) == inversion_probability(knee())
