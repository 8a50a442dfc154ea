"""Blocks with a bf16 residual stream: close to float32, few casts, compiled without a break."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from knee_siglip.encoders import blocks
from knee_siglip.encoders.blocks import _CompiledGelu, _normalise
from knee_siglip.encoders.dinov2 import Dinov2Config, Dinov2Encoder
from knee_siglip.model.device import place
from library import library_tower

CPU = torch.device("cpu")
PIXELS = torch.randn(3, 1, 56, 56, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(2, 32, (3, 8), generator=torch.Generator().manual_seed(0))

TOWERS = {
    "vision": lambda model: model.vision.pool(PIXELS, model.image_mean, model.image_std),
    "text": lambda model: model.text.pool(TOKENS),
}


def encode(model, tower, dtype=torch.bfloat16):
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return TOWERS[tower](model)


def gradients(model, tower, dtype):
    model.zero_grad()
    encode(model, tower, dtype).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


class Casts(TorchDispatchMode):
    """Counts operators that change the type of a number of values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype != args[0].dtype:
            self.count += 1
        return result


@pytest.mark.parametrize("tower", TOWERS)
def test_embeddings_and_gradients_are_close_to_those_of_float32(make_model, tower):
    model = make_model(text_layers=3)
    exact, found = encode(model, tower, None), encode(model, tower)
    assert 0 < relative_error(found, exact) < 0.02
    assert found.dtype == torch.float32
    expected, rounded = gradients(model, tower, None), gradients(model, tower, torch.bfloat16)
    assert rounded.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() < 0.04 * max(gradient.norm(), 0.05 * largest), name


@pytest.mark.parametrize("tower", TOWERS)
def test_the_stream_is_cast_once_and_no_product_casts_again(make_model, tower):
    model = make_model(text_layers=3)
    counts = []
    for layers in (1, 3):
        if tower == "vision":
            model.vision_model.encoder.layer = model.vision_model.encoder.layer[:layers]
        else:
            model.text_model.encoder.layers = model.text_model.encoder.layers[-layers:]
        with Casts() as casts:
            gradients(model, tower, torch.bfloat16)
        counts.append(casts.count)
    assert counts[0] == counts[1]


def test_a_gated_mlp_and_a_projection_without_bias_are_followed(make_model):
    model = make_model()
    gated = {"use_swiglu_ffn": True, "qkv_bias": False}
    config = Dinov2Config.from_dict(model.config.vision_config.to_dict() | gated)
    torch.manual_seed(0)
    model.vision_model = Dinov2Encoder.build(config)
    assert 0 < relative_error(encode(model, "vision"), encode(model, "vision", None)) < 0.02
    assert gradients(model, "vision", torch.bfloat16).keys() == gradients(model, "vision", None).keys()


@pytest.mark.parametrize("tower", TOWERS)
def test_checkpointing_gives_the_same_gradients(make_model, tower):
    plain, saving = make_model(text_layers=2).train(), make_model(text_layers=2).train()
    (saving.vision_model if tower == "vision" else saving.text_model).activation_checkpointing_enable()
    expected = gradients(plain, tower, torch.bfloat16)
    for name, gradient in gradients(saving, tower, torch.bfloat16).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("tower", TOWERS)
def test_checkpointing_computes_no_norm_more_in_the_forward_pass(make_model, tower, monkeypatch):
    norms = []
    monkeypatch.setattr(blocks, "_normalise", lambda *args: norms.append(args) or _normalise(*args))
    counts = []
    for is_saving in (False, True):
        model = make_model(text_layers=2).train()
        if is_saving:
            (model.vision_model if tower == "vision" else model.text_model).activation_checkpointing_enable()
        norms.clear()
        encode(model, tower)
        counts.append(len(norms))
    assert counts[0] == counts[1] > 0


def test_a_copied_model_computes_with_its_own_weights(make_model):
    model = make_model()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.zero_()
    assert encode(copied, "vision").abs().sum() > 0


def test_an_adapter_around_a_layer_leaves_the_stream_to_autocast(make_model):
    class Adapter(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

        def forward(self, values):
            return self.layer(values) + 1

    model = make_model()
    plain = encode(model, "vision")
    for block in model.vision.blocks:
        block.attention.v_proj = Adapter(block.attention.v_proj)
    assert relative_error(encode(model, "vision"), plain) > 0.05


def test_weights_in_bf16_need_no_cast(make_model):
    model = place(make_model(), CPU).to(torch.bfloat16)
    pixels = PIXELS.to(torch.bfloat16)
    found = model.vision.pool(pixels, model.image_mean, model.image_std)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("tower", TOWERS)
def test_the_blocks_of_a_tower_compile_to_one_graph_and_one_that_pools_without_a_break(make_model, tower):
    model = make_model(text_layers=3).train()
    expected = gradients(model, tower, torch.bfloat16)
    torch._dynamo.reset()
    counters.clear()
    blocks = model.vision.blocks if tower == "vision" else model.text.blocks
    for block in blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    found = gradients(model, tower, torch.bfloat16)
    assert counters["stats"]["unique_graphs"] == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-2, atol=1e-3 * gradient.abs().max().item(), msg=name)


def test_the_compilers_gelu_is_the_exact_one():
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 0.0, 1e4])]).requires_grad_()
    (expected_gradient,) = torch.autograd.grad(F.gelu(values).sum(), values)
    found = _CompiledGelu.apply(values)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(found, F.gelu(values), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [28, 42, 56, 126])
def test_positions_are_those_of_the_library(make_model, size):
    model = make_model()
    side = size // 14
    library = library_tower(model.vision_model)
    theirs = library.embeddings.interpolate_pos_encoding(torch.zeros(1, side**2 + 1, 16), size, size)
    torch.testing.assert_close(model.vision._positions(side), theirs, rtol=1e-5, atol=1e-6)
    model.vision._positions(side).square().sum().backward()
    theirs.square().sum().backward()
    ours = model.vision_model.embeddings.position_embeddings.grad
    torch.testing.assert_close(ours, library.embeddings.position_embeddings.grad, rtol=1e-4, atol=1e-5)
