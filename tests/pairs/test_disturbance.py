"""Each disturbance does what its name and amount say, the same for the same image."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from knee_siglip.pairs.disturbance import DISTURBANCES, brightness, gamma, inversion, jpeg, noise, rotation, shift
from knee_siglip.pairs.randomness import sample_keys

SIDE = 60


@pytest.fixture
def pixels():
    """(6, 60, 60): smooth, with a bright square beside the centre."""
    ramp = torch.arange(SIDE).expand(SIDE, SIDE) + 60
    images = ramp.repeat(6, 1, 1).to(torch.uint8)
    images[:, 20:30, 35:45] = 230
    return images


def keys_of(count, seed=0):
    return sample_keys(seed, 0, torch.arange(count))


def names(disturbance):
    return f"{disturbance.condition}, {disturbance.level}"


@pytest.mark.parametrize("change", [shift(0), rotation(0), gamma(1), brightness(0), noise(0)])
def test_an_amount_of_nothing_changes_nothing(pixels, change):
    torch.testing.assert_close(change(pixels, keys_of(6)), pixels.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=names)
def test_each_changes_the_image_and_keeps_shape_and_range(pixels, disturbance):
    before = pixels.clone()
    after = disturbance.change(pixels, keys_of(6))
    assert after.shape == pixels.shape
    assert after.dtype == torch.float32
    assert (after - pixels).abs().max() > 1
    assert after.min() >= 0
    assert after.max() <= 255
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=names)
def test_equal_keys_give_equal_changes_whatever_else_is_in_the_batch(pixels, disturbance):
    together = disturbance.change(pixels, keys_of(6))
    alone = disturbance.change(pixels[4:5], keys_of(6)[4:5])
    assert torch.equal(together[4:5], alone)


def test_names_are_unique():
    assert len(set(map(names, DISTURBANCES))) == len(DISTURBANCES)


def centres(images):
    """(B, 2) of the bright square, right and down."""
    places = [(image > 200).nonzero().float().mean(dim=0).flip(0) for image in images]
    return torch.stack(places)


def test_shift_moves_by_its_share_in_directions_of_their_own(pixels):
    moved = centres(shift(0.1)(pixels, keys_of(6))) - centres(pixels)
    torch.testing.assert_close(moved.norm(dim=1), torch.full((6,), 0.1 * SIDE), rtol=0, atol=0.6)
    assert len({tuple(direction) for direction in moved.round().tolist()}) > 2


def test_rotation_turns_by_its_angle_either_way(pixels):
    def angles(images):
        right, down = (centres(images) - (SIDE - 1) / 2).unbind(dim=1)
        return torch.rad2deg(torch.atan2(down, right))

    turned = angles(rotation(10)(pixels, keys_of(6))) - angles(pixels)
    torch.testing.assert_close(turned.abs(), torch.full((6,), 10.0), rtol=0, atol=1)
    assert set(turned.sign().tolist()) == {-1, 1}


def test_gamma_and_brightness_are_the_formulas(pixels):
    grey = pixels.double()
    torch.testing.assert_close(gamma(0.7)(pixels, keys_of(6)).double(), 255 * (grey / 255) ** 0.7, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        brightness(0.15)(pixels, keys_of(6)).double(), (grey + 38.25).clamp(0, 255), rtol=1e-5, atol=1e-3
    )


def test_noise_has_its_standard_deviation():
    flat = torch.full((4, 128, 128), 128, dtype=torch.uint8)
    noisy = noise(0.05)(flat, keys_of(4)) - 128
    assert noisy.std().item() == pytest.approx(0.05 * 255, rel=0.02)
    assert noisy.mean().item() == pytest.approx(0, abs=0.3)
    correlation = torch.corrcoef(noisy.flatten(1)) - torch.eye(4)
    assert correlation.abs().max() < 0.05


def test_inversion_is_exact(pixels):
    once = inversion()(pixels, keys_of(6))
    assert torch.equal(once, 255 - pixels.float())
    assert torch.equal(inversion()(once.to(torch.uint8), keys_of(6)), pixels.float())


def test_jpeg_is_a_real_file_there_and_back(pixels):
    rough = torch.randint(0, 256, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    errors = []
    for quality in (95, 30, 10):
        file = io.BytesIO()
        Image.fromarray(rough[1].numpy()).save(file, "JPEG", quality=quality)
        found = jpeg(quality)(rough, keys_of(2))
        np.testing.assert_array_equal(found[1].numpy(), np.asarray(Image.open(file)))
        errors.append(math.sqrt((found - rough).square().mean().item()))
    assert 0 < errors[0] < errors[1] < errors[2]
