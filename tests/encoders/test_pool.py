"""Pooling without what nobody uses gives what the library gives, gradients included."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from knee_siglip.encoders.dinov2 import Dinov2Encoder, embed_by_product
from knee_siglip.encoders.siglip_text import SiglipTextEncoder
from library import library_tower, new_library_tower

PIXELS = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.randint(2, 32, (3, 8), generator=torch.Generator().manual_seed(0))

TOWERS = {
    "vision": (
        lambda model: model.vision.pool(PIXELS, model.image_mean, model.image_std),
        lambda library: library(PIXELS).last_hidden_state[:, 0],
    ),
    "text": (
        lambda model: model.text.pool(TOKENS),
        lambda library: library(TOKENS).pooler_output,
    ),
}


def own_tower(model, tower):
    return model.vision_model if tower == "vision" else model.text_model


def gradients(output: torch.Tensor, encoder: nn.Module) -> dict[str, torch.Tensor]:
    output.square().sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


# the library's eager attention takes its softmax in float32
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-10), ("eager", 1e-5)])
@pytest.mark.parametrize("tower", TOWERS)
def test_output_and_gradients_equal_the_librarys(make_model, tower, attention, tolerance):
    model = make_model().double()
    model.set_attn_implementation(attention)
    own = own_tower(model, tower)
    library = library_tower(own, attention)
    ours, theirs = TOWERS[tower][0](model), TOWERS[tower][1](library)
    our_gradients, their_gradients = gradients(ours, own), gradients(theirs, library)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=10 * tolerance, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_of_one_block_works(make_model, tower):
    model = make_model().double()
    model.vision_model.encoder.layer = model.vision_model.encoder.layer[:1]
    model.vision_model.config.num_hidden_layers = 1
    ours, theirs = TOWERS[tower][0](model), TOWERS[tower][1](library_tower(own_tower(model, tower)))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_a_seed_gives_the_librarys_weights_and_leaves_the_generator_where_it_does(gated):
    """So that a seed still gives what it gave when the towers were the library's."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    for kind, more in ((Dinov2Encoder, {"use_swiglu_ffn": gated}), (SiglipTextEncoder, {"intermediate_size": 24})):
        torch.manual_seed(0)
        tower = kind.build(kind.config_of(sizes | more))
        after = torch.rand(1)
        torch.manual_seed(0)
        library = new_library_tower(tower)
        assert torch.equal(torch.rand(1), after)
        theirs = library.state_dict()
        assert list(tower.state_dict()) == list(theirs)
        assert all(torch.equal(weight, theirs[name]) for name, weight in tower.state_dict().items())


@pytest.mark.parametrize("gated", [False, True])
def test_all_tokens_and_attentions_are_the_librarys_to_the_bit(gated):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "use_swiglu_ffn": gated}
    tower = Dinov2Encoder.build(Dinov2Encoder.config_of(sizes | {"image_size": 28})).eval()
    pixels = PIXELS.float()
    tokens = Dinov2Encoder(tower).tokens(pixels)
    assert torch.equal(tokens, library_tower(tower)(pixels).last_hidden_state)
    tokens, attentions = Dinov2Encoder(tower).tokens_and_attentions(pixels)
    theirs = library_tower(tower, "eager")(pixels, output_attentions=True)
    assert torch.equal(tokens, theirs.last_hidden_state)
    assert all(torch.equal(*pair) for pair in zip(attentions, theirs.attentions, strict=True))


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


def test_a_gpus_matrix_product_over_patches_is_the_convolution():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pixels, weight, bias, cls, positions = (
        draw(3, 2, 42, 42),
        draw(8, 2, 14, 14),
        draw(8),
        draw(1, 1, 8),
        draw(1, 10, 8),
    )
    patches = F.conv2d(pixels, weight, bias, stride=14).flatten(2).transpose(1, 2)
    expected = torch.cat([cls.expand(3, -1, -1), patches], dim=1) + positions
    found = embed_by_product(pixels, weight, bias, cls, positions, torch.float64)
    torch.testing.assert_close(found, expected)
