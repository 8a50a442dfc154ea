"""Pooling without what nobody uses gives what the library gives, gradients included."""

import pytest
import torch

PIXELS = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.randint(2, 32, (3, 8), generator=torch.Generator().manual_seed(0))

TOWERS = {
    "vision": (
        lambda model: model.vision.pool(PIXELS, model.image_mean, model.image_std),
        lambda model: model.vision_model(PIXELS).last_hidden_state[:, 0],
    ),
    "text": (
        lambda model: model.text.pool(TOKENS),
        lambda model: model.text_model(TOKENS).pooler_output,
    ),
}


# the library's eager attention takes its softmax in float32
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-10), ("eager", 1e-5)])
@pytest.mark.parametrize("tower", TOWERS)
def test_output_and_gradients_equal_the_librarys(make_model, tower, attention, tolerance):
    model = make_model().double()
    model.set_attn_implementation(attention)
    found = []
    for encode in TOWERS[tower]:
        model.zero_grad()
        output = encode(model)
        output.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((output, gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=10 * tolerance, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_of_one_block_works(make_model, tower):
    model = make_model().double()
    model.vision_model.encoder.layer = model.vision_model.encoder.layer[:1]
    ours, theirs = (encode(model) for encode in TOWERS[tower])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stds", [(0.25, 0.25, 0.25), (0.2, 0.25, 0.4)])
def test_a_grey_image_needs_one_channel(make_model, stds):
    """Of an encoder whose channels are normalised unlike each other too."""
    model = make_model(image_mean=(0.5, 0.4, 0.3), image_std=stds).double()
    pixels = torch.randint(0, 256, (3, 56, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = []
    for values in (model.normalise_pixels(pixels), model.normalise_grey(pixels)):
        model.zero_grad()
        features = model.vision_features(values)
        features.square().sum().backward()
        found.append((features, model.vision_model.embeddings.patch_embeddings.projection.weight.grad.clone()))
    assert model.normalise_grey(pixels).shape == (3, 1, 56, 56)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # the mean and std are stored in float32
