"""Against torch's own counter, exactly.

It does not know the CPU's fused attention, so attention is computed in steps here, nor `addmm_`, which is told to it.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from knee_siglip.params.sections import AugmentParams, FreezeParams
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import PairEncoder
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.throughput import image_flops, loss_flops, pair_flops, peak_flops, step_flops, text_flops
from toys import add_gradients, local_batch

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def make_counted(make_model):
    def make(freeze=None, **kwargs):
        model = make_model(**kwargs)
        model.set_attn_implementation("eager")
        freeze_towers(model, freeze or FreezeParams())
        return model.train()

    return make


def new_counter():
    def product(_, left, right, **kwargs):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


def counted(compute, *inputs):
    """FLOPs forward and backward, as far as anything takes a gradient."""
    with new_counter() as counter:
        output = compute(*inputs)
        if output.requires_grad:
            output.sum().backward()
    return counter.get_total_flops()


def counted_step(model, pairs, micro_batch_size):
    encoder = PairEncoder(model, None, AugmentParams())
    with new_counter() as counter:
        add_gradients(encoder, local_batch(pairs), micro_batch_size)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("freeze", "image_size"),
    [(FreezeParams(vision=kept), 28) for kept in ("none", "all", 1, 2)] + [(FreezeParams(), 56)],
)
def test_an_image_costs_what_torch_counts(make_counted, freeze, image_size):
    model = make_counted(freeze)
    pixels = torch.zeros(3, 1, image_size, image_size)
    positions = counted(model.vision._positions, image_size // 14)  # once, whatever the number of images
    assert 3 * image_flops(model, image_size) == counted(model.get_image_features, pixels) - positions


def test_adapters_spare_the_gradients_of_the_weights_alone(make_counted):
    costs = [image_flops(make_counted(FreezeParams(vision=kept)), 28) for kept in ("all", "lora", "none")]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("freeze", [FreezeParams(text=kept) for kept in ("none", "all", 1)], ids=str)
def test_a_text_costs_what_torch_counts(make_counted, freeze):
    model = make_counted(freeze)
    assert 3 * text_flops(model) == counted(model.get_text_features, torch.zeros(3, 8, dtype=torch.int64))


def test_what_is_frozen_by_hand_is_seen(make_counted):
    """Trained embeddings under frozen blocks: gradients go through the blocks but not to their weights."""
    model = make_counted()
    for block in (*model.vision_model.encoder.layer, *model.text_model.encoder.layers):
        block.requires_grad_(False)
    assert 3 * image_flops(model, 28) == counted(model.get_image_features, torch.zeros(3, 1, 28, 28))
    assert 3 * text_flops(model) == counted(model.get_text_features, torch.zeros(3, 8, dtype=torch.int64))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_only_norms_trained_still_need_gradients_of_inputs(make_counted, is_frozen):
    model = make_counted()
    model.visual_projection.requires_grad_(not is_frozen)
    model.vision_model.requires_grad_(False)
    model.vision_model.layernorm.requires_grad_(True)
    assert 3 * image_flops(model, 28) == counted(model.get_image_features, torch.zeros(3, 1, 28, 28))


def test_gated_mlps_have_three_matrices(make_counted):
    config = make_counted().config
    config.vision_config.use_swiglu_ffn = True
    model = type(make_counted())(config).train()
    model.set_attn_implementation("eager")
    assert 3 * image_flops(model, 28) == counted(model.get_image_features, torch.zeros(3, 1, 28, 28))


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_with_cached_features_only_the_projection_is_computed(make_counted, projection):
    model = make_counted(FreezeParams(vision="all"), projection=projection)
    flops = image_flops(model, 28, cached_features=True)
    assert 3 * flops == counted(model.project_image_features, torch.zeros(3, 16))
    assert flops < image_flops(model, 28)


def test_the_loss_costs_three_products():
    embeds = [torch.randn(5, 16, requires_grad=True) for _ in range(2)]
    scale, bias, ids = torch.tensor(10.0), torch.tensor(-2.0), torch.arange(5).unsqueeze(1)
    flops = counted(lambda *pair: contrastive_loss(*pair, scale, bias, ids, ids, 5, Ranks())[0], *embeds)
    assert loss_flops(5, 16) == flops


@pytest.mark.parametrize(
    "freeze", [FreezeParams(), FreezeParams(vision=1, text=1), FreezeParams(vision="all")], ids=str
)
def test_a_step_costs_what_torch_counts(make_counted, make_pairs, freeze):
    """12 images with 6 distinct texts."""
    model = make_counted(freeze)
    assert step_flops(pair_flops(model, 28), images=12, texts=6, width=model.text.width) == counted_step(
        model, make_pairs(count=12), 12
    )


def test_what_is_computed_twice_counts_once(make_counted, make_pairs):
    model = make_counted()
    once = step_flops(pair_flops(model, 28), images=12, texts=6, width=model.text.width)
    assert counted_step(model, make_pairs(count=12), 6) > 1.3 * once
    model.activation_checkpointing_enable()
    assert step_flops(pair_flops(model, 28), images=12, texts=6, width=model.text.width) == once


@pytest.fixture
def peak(monkeypatch):
    """`peak_flops` of the GPU of a name."""

    def peak(name, dtype, tf32):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        return peak_flops(torch.device("cuda"), dtype, tf32)

    return peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [(H100, 989.4), ("NVIDIA A100-SXM4-80GB", 312), ("Tesla T4", 65), ("NVIDIA GeForce RTX 4090", 165.2)],
)
def test_the_peak_of_half_precision_is_known_by_the_drivers_name(peak, name, tflops):
    assert peak(name, torch.float16, tf32=True) == tflops * 1e12


@pytest.mark.parametrize("name", [f"{H100} MIG 1g.10gb", "NVIDIA H100", "AMD Instinct MI300X", ""])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_no_peak_is_guessed(peak, name, dtype):
    assert peak(name, dtype, tf32=True) is None


@pytest.mark.parametrize("name", ["Tesla T4", "Tesla V100-SXM2-32GB", "NVIDIA V100-PCIE-16GB"])
def test_cards_without_bf16_have_no_peak_for_it(peak, name):
    assert peak(name, torch.bfloat16, tf32=True) is None
    assert peak(name, torch.float16, tf32=True) > 6e13
    assert peak(name, None, tf32=True) == peak(name, None, tf32=False)


@pytest.mark.parametrize(
    ("dtype", "tf32", "tflops"), [(None, True, 494.7), (None, False, 66.9), (torch.float64, True, None)]
)
def test_the_peak_of_full_precision_depends_on_tf32(peak, dtype, tf32, tflops):
    assert peak(H100, dtype, tf32) == (tflops and tflops * 1e12)


def test_a_cpu_has_no_knownpeak():
    assert peak_flops(torch.device("cpu"), None, tf32=True) is None
