"""Maps of images in which one patch alone differs from all others: that patch must be found."""

import pytest
import torch
from torch.nn import functional as F

from knee_siglip.explain.maps import METHODS, attention_relevance, occlusion_drops, patch_embeds, phrase_maps
from library import library_tower

PATCH, SIDE = 14, 4
PLACES = [(0, 0), (1, 2), (3, 3), (2, 0)]


@pytest.fixture
def model(make_model):
    """Without position embeddings, so that equal patches are equal tokens."""
    model = make_model().eval()
    torch.nn.init.zeros_(model.vision_model.embeddings.position_embeddings)
    return model


@pytest.fixture
def images():
    """(4, 56, 56): grey, with a textured patch at `PLACES`."""
    pixels = torch.full((len(PLACES), PATCH * SIDE, PATCH * SIDE), 120, dtype=torch.uint8)
    texture = torch.randint(0, 256, (PATCH, PATCH), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image, (row, column) in zip(pixels, PLACES, strict=True):
        image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = texture
    return pixels


@pytest.fixture
def phrase(model, images):
    """(D,) what the texture adds to the embedding of a plain image."""
    with torch.no_grad():
        textured, plain = model.get_image_features(
            model.normalise_grey(torch.stack([images[0], torch.full_like(images[0], 120)]))
        )
    return textured - plain


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_the_patch_that_makes_the_similarity_is_the_highest(model, images, phrase, method):
    maps = phrase_maps(model, images, [phrase.unsqueeze(0)] * len(images), method, window=1)
    assert [divmod(int(image[0].argmax()), SIDE) for image in maps] == PLACES


def test_raw_maps_are_the_cosines_of_the_projected_patch_tokens(model, images):
    library = library_tower(model.vision_model)
    tokens = library(model.normalise_pixels(images)).last_hidden_state[:, 1:]
    expected = F.normalize(model.visual_projection(tokens), dim=-1).detach()
    row, column = PLACES[1]
    wanted = expected[1, row * SIDE + column]
    (heat,) = phrase_maps(model, images[1:2], [wanted.unsqueeze(0)], "raw")
    torch.testing.assert_close(heat[0].flatten(), expected[1] @ wanted)
    assert heat[0, row, column] == heat.max() == pytest.approx(1)
    torch.testing.assert_close(patch_embeds(model, images)[1, row, column], wanted)


def test_attention_relevance_is_the_papers_product(make_model):
    """R = (I + A2)(I + A1), A = mean over heads of the positive part of attention times gradient, taken whole."""
    model = make_model(seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 42, 42), generator=generator, dtype=torch.uint8)
    phrases = torch.randn(2, 16, generator=generator)
    found = attention_relevance(model, pixels, phrases)
    library = library_tower(model.vision_model, "eager")
    for image, phrase, ours in zip(pixels, phrases, found, strict=True):
        seen = library(model.normalise_pixels(image.unsqueeze(0)), output_attentions=True)
        for attention in seen.attentions:
            attention.retain_grad()
        (model.project_image_features(seen.last_hidden_state[:, 0])[0] @ phrase).backward()
        relevance = torch.eye(10)
        for attention in seen.attentions:
            relevance = relevance + (attention * attention.grad).clamp(min=0).mean(dim=1)[0] @ relevance
        torch.testing.assert_close(ours.flatten(), relevance[0, 1:].detach())
        assert (ours >= 0).all()


def test_occlusion_is_the_mean_over_the_squares_that_hide_a_patch(make_model):
    """Against plain loops; 4 x 4 patches and squares of 2: three by three places."""
    model = make_model(seed=2).eval()
    pixels = torch.randint(0, 256, (2, 56, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    drops = occlusion_drops(model, pixels, window=2)
    with torch.no_grad():
        for image, drop in zip(pixels, drops, strict=True):
            found: dict[tuple[int, int], list[torch.Tensor]] = {}
            whole = model.get_image_features(model.normalise_grey(image.unsqueeze(0)))[0]
            for top in range(3):
                for left in range(3):
                    hidden = image.clone()
                    hidden[14 * top : 14 * top + 28, 14 * left : 14 * left + 28] = round(image.double().mean().item())
                    lost = whole - model.get_image_features(model.normalise_grey(hidden.unsqueeze(0)))[0]
                    for place in ((top + i, left + j) for i in range(2) for j in range(2)):
                        found.setdefault(place, []).append(lost)
            for (row, column), losses in found.items():
                torch.testing.assert_close(drop[row, column], torch.stack(losses).mean(dim=0))


def test_the_usual_window_is_a_quarter_and_none_is_larger_than_the_image(model, images):
    torch.testing.assert_close(occlusion_drops(model, images), occlusion_drops(model, images, window=1))
    everything = occlusion_drops(model, images, window=99)
    torch.testing.assert_close(everything, everything[:, :1, :1].expand_as(everything))


def test_every_patch_is_hidden_also_where_the_squares_do_not_fit_evenly(model):
    pixels = torch.randint(0, 256, (1, 70, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert (occlusion_drops(model, pixels, window=4).abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_several_phrases_of_an_image_or_none(model, images, phrase, method):
    """As if each had been asked for alone, in another batch."""
    phrases = [torch.stack([phrase, -phrase]), phrase.new_zeros(0, 16), phrase.unsqueeze(0), phrase.unsqueeze(0)]
    maps = phrase_maps(model, images, phrases, method)
    assert [tuple(heat.shape) for heat in maps] == [(2, 4, 4), (0, 4, 4), (1, 4, 4), (1, 4, 4)]
    (alone,) = phrase_maps(model, images[:1], [-phrase.unsqueeze(0)], method)
    torch.testing.assert_close(maps[0][1], alone[0])


@pytest.mark.parametrize("method", METHODS)
def test_maps_work_on_a_frozen_model_and_leave_it_as_it_was(model, images, phrase, method):
    phrases = [phrase.unsqueeze(0)] * len(images)
    expected = phrase_maps(model, images, phrases, method)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(phrase_maps(model, images, phrases, method), expected)
    assert {block.attention.implementation for block in model.vision.blocks} == {"sdpa"}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("method", "differs"), [("raw", True), ("occlusion", True), ("gradient", False)])
def test_maps_in_half_precision_are_near_those_of_float32(model, images, phrase, method, differs, dtype):
    phrases = [phrase.unsqueeze(0)] * len(images)
    exact = torch.stack(phrase_maps(model, images, phrases, method, window=1))
    half = torch.stack(phrase_maps(model, images, phrases, method, window=1, dtype=dtype))
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.05 * exact.norm()
    assert torch.equal(half, exact) != differs
