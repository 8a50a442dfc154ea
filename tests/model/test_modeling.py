import math

import pytest
import torch

from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 28, 28), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(2, 32, (5, 8), generator=generator)


def test_logits_are_scaled_cosines_plus_bias(make_model, inputs):
    model = make_model(initial_temperature=0.07).eval()
    pixels, input_ids = inputs
    images, texts = model.get_image_features(model.normalise_pixels(pixels)), model.get_text_features(input_ids)
    assert images.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert texts.norm(dim=-1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    logits = model(model.normalise_pixels(pixels), input_ids)
    torch.testing.assert_close(logits, images @ texts.T / 0.07 - 2.0)


def test_pixels_are_normalised_with_the_vision_encoders_own_values(make_model):
    model = make_model(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    values = model.normalise_pixels(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert values.shape == (1, 3, 1, 2)
    assert values.unique().tolist() == pytest.approx([-2.0, 2.0])


def test_the_image_is_read_from_the_cls_token(make_model, inputs):
    """Not from the pooled output or the patches: the projection sees the first token after the last norm."""
    model = make_model().eval()
    pixel_values = model.normalise_pixels(inputs[0])
    cls_token = model.vision.tokens(pixel_values)[:, 0]
    expected = torch.nn.functional.normalize(model.visual_projection(cls_token), dim=-1)
    torch.testing.assert_close(model.get_image_features(pixel_values), expected)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_an_empty_model_takes_config_and_weights_of_another(make_model, inputs, projection):
    model = make_model(projection=projection, image_mean=(0.4, 0.4, 0.4)).eval()
    config = KneeRadDinoSigLIPConfig.from_dict(model.config.to_dict() | {"unknown": 1})
    generator = torch.get_rng_state()
    empty = KneeRadDinoSigLIPModel(config, is_empty=True).eval()
    assert torch.equal(torch.get_rng_state(), generator)
    empty.load_state_dict(model.state_dict(), assign=True)
    pixels, input_ids = inputs
    expected = model(model.normalise_pixels(pixels), input_ids)
    assert torch.equal(empty(empty.normalise_pixels(pixels), input_ids), expected)


def test_gradient_checkpointing_changes_no_gradient(make_model, inputs):
    gradients = []
    for checkpointed in (False, True):
        model = make_model().train()
        if checkpointed:
            model.activation_checkpointing_enable()
        model(model.normalise_pixels(inputs[0]), inputs[1]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_parameter_counts_add_up(make_model):
    model = make_model()
    counts = model.parameter_counts()
    assert counts["total"] == sum(counts[part] for part in ("vision", "text", "projection")) + 2
    model.vision_model.requires_grad_(False)
    assert model.parameter_counts()["trainable"] == counts["total"] - counts["vision"]


def test_temperature_sets_the_initial_scale(make_model):
    assert make_model(initial_temperature=0.05).logit_scale.item() == pytest.approx(math.log(20))
