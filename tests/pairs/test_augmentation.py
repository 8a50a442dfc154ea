import pytest
import torch

from knee_siglip.pairs.augmentation import CPU_IMAGES, augment
from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.params.sections import AugmentParams

IMAGES = [name for name in AugmentParams.model_fields if not name.startswith("sentence") and name != "mirror"]
NONE = dict.fromkeys(IMAGES, 0)


@pytest.fixture
def pixels():
    image = torch.full((CPU_IMAGES + 3, 56, 56), 128, dtype=torch.uint8)
    image[:, 10:20, 5:15] = 220
    return image


def changed(pixels, seed=0, **amounts):
    return augment(pixels, AugmentParams(**(NONE | amounts)), keys_of(pixels, seed))


def keys_of(pixels, seed=0):
    return sample_keys(seed, 0, torch.arange(len(pixels)))


def test_all_zero_changes_nothing(pixels):
    assert torch.equal(changed(pixels), pixels.float())


@pytest.mark.parametrize("amount", [{name: 0.3} for name in IMAGES if name != "rotation"] + [{"rotation": 20}])
def test_each_amount_does_something_and_keeps_the_grey_range(pixels, amount):
    result = changed(pixels, **amount)
    assert not torch.equal(result, pixels.float())
    assert result.min() >= 0
    assert result.max() <= 255


def test_each_image_gets_its_own_change_and_a_seed_repeats_it(pixels):
    result = changed(pixels, shift=0.2)
    assert not torch.equal(result[0], result[1])
    assert torch.equal(result, changed(pixels, shift=0.2))
    assert not torch.equal(result, changed(pixels, seed=1, shift=0.2))


def test_an_image_is_changed_alike_whatever_it_is_computed_with(pixels):
    keys = keys_of(pixels, seed=5)
    whole = augment(pixels, AugmentParams(), keys)
    rows = (CPU_IMAGES + 1, 0)
    alone = [augment(pixels[row : row + 1], AugmentParams(), keys[row : row + 1]) for row in rows]
    assert torch.equal(torch.cat(alone), whole[list(rows)])
    assert augment(pixels[:0], AugmentParams(), keys[:0]).shape == (0, 56, 56)


def test_the_given_pixels_stay_as_they_are(pixels):
    given = pixels.clone()
    augment(given, AugmentParams(), keys_of(given))
    assert torch.equal(given, pixels)


def test_rotation_turns_about_the_centre_by_the_angle_drawn():
    """A bright spot right of the centre comes to lie on a circle, at most so many degrees away."""
    image = torch.zeros(64, 101, 101, dtype=torch.uint8)
    image[:, 49:52, 89:92] = 255
    result = changed(image, rotation=20)
    places = torch.arange(101.0) - 50
    weight = result.sum(dim=(1, 2))
    x = (result.sum(dim=1) * places).sum(dim=1) / weight
    y = (result.sum(dim=2) * places).sum(dim=1) / weight
    torch.testing.assert_close(torch.hypot(x, y), torch.full((64,), 40.0), atol=0.2, rtol=0)
    angles = torch.rad2deg(torch.atan2(y, x)).abs()
    assert 17 < angles.max() <= 20.1


@pytest.mark.parametrize(("name", "low", "high"), [("brightness", 128 - 25.5, 128 + 25.5), ("gamma", 119.05, 136.7)])
def test_exposure_changes_a_grey_by_as_much_as_it_says(name, low, high):
    grey = torch.full((500, 4, 4), 128, dtype=torch.uint8)
    greys = changed(grey, **{name: 0.1})[:, 0, 0]
    assert low - 0.1 <= greys.min() < low + 2
    assert high - 2 < greys.max() <= high + 0.1
    assert greys.mean() == pytest.approx(128, abs=2)


def test_noise_is_white_and_has_the_standard_deviation_that_was_drawn():
    grey = torch.full((200, 64, 64), 128, dtype=torch.uint8)
    noise = changed(grey, noise=0.1) - 128
    deviations = noise.flatten(1).std(dim=1)
    assert deviations.max() < 1.03 * 25.5
    assert deviations.mean() == pytest.approx(12.75, rel=0.15)
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var()
    assert neighbours.abs() < 0.01
    assert noise.mean().abs() < 0.1


def test_no_setting_mirrors_the_knee(pixels):
    """The bright square is on the left and must stay there: left and right are in the text."""
    result = augment(pixels, AugmentParams(), keys_of(pixels))
    left, right = result[:, :, :28].amax(dim=(1, 2)), result[:, :, 28:].amax(dim=(1, 2))
    assert (left > right).all()


def test_shift_moves_by_a_share_of_the_side():
    image = torch.zeros(64, 100, 100, dtype=torch.uint8)
    image[:, 50, 50] = 255
    result = changed(image, shift=0.1)
    columns = torch.arange(100.0)
    centres = (result.sum(dim=1) * columns).sum(dim=1) / result.sum(dim=(1, 2))
    assert (centres - 50).abs().max() <= 10.5
    assert (centres - 50).abs().max() > 7
