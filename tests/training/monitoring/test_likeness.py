import numpy as np
import pytest
import torch

from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.training.monitoring.likeness import WAYS, disarranged, fit_likeness, reframed

WIDTH, SIDE = 6, 56


def embeds(count, seed, shift=0.0):
    """Around a point, with few directions in which they vary."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 2)) @ np.eye(2, WIDTH) + 0.01 * rng.normal(size=(count, WIDTH)) + shift).astype(
        "f4"
    )


def test_other_images_are_beyond_the_limit_and_those_of_the_same_kind_within():
    likeness = fit_likeness((embeds(200, 0), embeds(200, 4, shift=0.4)), embeds(200, 1))
    assert (likeness.distances(embeds(200, 2)) > 1).mean() < 0.05
    assert (likeness.distances(embeds(50, 3, shift=0.2)) > 1).all()


def test_of_two_images_as_far_from_the_training_the_one_nearer_to_the_disarranged_is_less_like_it():
    likeness = fit_likeness((embeds(200, 0), embeds(200, 4, shift=0.4)), embeds(200, 1))
    towards, away = likeness.distances(np.stack([np.full(WIDTH, 0.1), np.full(WIDTH, -0.1)]))
    assert towards > 1.5 * away


def test_fewer_images_than_dimensions_still_give_a_limit():
    wide = np.random.default_rng(0).normal(size=(120, 100))
    likeness = fit_likeness((wide[:40], wide[40:80]), wide[80:])
    assert np.isfinite(likeness.distances(wide)).all()


def test_embeddings_that_are_no_numbers_give_no_limit():
    broken = embeds(200, 0)
    broken[7] = np.nan
    assert fit_likeness((broken, embeds(200, 2)), embeds(200, 1)) is None


@pytest.fixture
def images():
    """Bright above, dark below, with a column of its own for each."""
    pixels = torch.full((24, SIDE, SIDE), 60, dtype=torch.uint8)
    pixels[:, : SIDE // 2] = 200
    pixels[torch.arange(24), :, 16 + torch.arange(24)] = 255
    return pixels


def test_a_reframed_image_keeps_its_parts_in_place_whatever_its_batch(images):
    keys = sample_keys(0, 0, torch.arange(24))
    found = reframed(images, keys)
    assert (found != images).flatten(1).any(dim=1).all()
    assert (found[:, :20].float().mean(dim=(1, 2)) > found[:, -20:].float().mean(dim=(1, 2))).all()
    assert torch.equal(found[5:9], reframed(images[5:9], keys[5:9]))


def test_each_way_puts_parts_in_the_wrong_place_and_keeps_the_size(images):
    halves, quarters, part, turned, upside_down, small = (
        way(images, sample_keys(0, 0, torch.arange(24))) for way in WAYS
    )
    assert {tuple(found.shape) for found in (halves, quarters, part, turned, upside_down, small)} == {(24, SIDE, SIDE)}
    assert torch.equal(upside_down, images.flip(1))
    assert torch.equal(halves, images.roll((SIDE // 2, SIDE // 2), (1, 2)))
    assert torch.equal(quarters.sort(dim=1).values.sum(dim=2), images.sort(dim=1).values.sum(dim=2))
    assert not torch.equal(quarters, images)
    assert torch.equal(turned.rot90(3, (1, 2)), images)
    assert torch.equal(small[:, : SIDE // 2, : SIDE // 2], images[:, ::2, ::2])
    assert torch.equal(small[:, SIDE // 2 :], small[:, : SIDE // 2])
    assert ((part > 225).sum(dim=2) > 2).any()  # the bright column is wider than it was


def test_disarranged_images_do_not_depend_on_their_batch(images):
    keys = sample_keys(0, 0, torch.arange(24))
    found = disarranged(images, keys)
    assert torch.equal(found[5:9], disarranged(images[5:9], keys[5:9]))
    assert not torch.equal(found, reframed(images, keys))
