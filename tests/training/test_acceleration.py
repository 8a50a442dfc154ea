import importlib.util
from unittest.mock import Mock

import pytest
import torch
from torch._dynamo.utils import counters

from knee_siglip.core.errors import UsageError
from knee_siglip.encoders.blocks import Attention
from knee_siglip.params.sections import AugmentParams, FreezeParams, GradientCheckpointingParams, TrainParams
from knee_siglip.training.acceleration import accelerate
from knee_siglip.training.encoder import PairEncoder
from knee_siglip.training.optimizer import freeze_towers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOWERS = ["vision", "text"]


def blocks(model, tower):
    return model.vision_model.encoder.layer if tower == "vision" else model.text_model.encoder.layers


def count_forwards(model, tower):
    """How often each block's MLP is computed; a list that grows."""
    calls = []
    for block in blocks(model, tower):
        # before, not after: recomputing stops within the last layer, as soon as its inputs are there
        block.mlp.fc1.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def gradients(model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 28, 28, generator=generator, dtype=model.dtype)
    input_ids = torch.randint(2, 32, (4, 8), generator=generator)
    model.train()(pixels, input_ids).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_set_on_both_towers(make_model, attention):
    model = make_model()
    model.set_attn_implementation("sdpa" if attention == "eager" else "eager")
    accelerate(model, TrainParams(attention=attention), CPU)
    for tower in (model.vision_model, model.text_model):
        assert {module.implementation for module in tower.modules() if isinstance(module, Attention)} == {attention}


def test_flash_attention_on_a_cpu_is_a_mistake_that_is_named(make_model):
    with pytest.raises(UsageError, match=r"train\.attention = flash_attention_2: needs an NVIDIA GPU; use sdpa"):
        accelerate(make_model(), TrainParams(attention="flash_attention_2"), CPU)


def test_flash_attention_without_its_package_tells_how_to_get_it(make_model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"train\.attention = flash_attention_2.*pip install flash-attn"):
        accelerate(make_model(), TrainParams(attention="flash_attention_2"), CUDA)


def test_flash_attention_in_full_precision_is_a_mistake_that_is_named(make_model):
    with pytest.raises(UsageError, match=r"train\.attention = flash_attention_2.*train\.mixed_precision: auto"):
        accelerate(make_model(), TrainParams(attention="flash_attention_2", mixed_precision="none"), CUDA)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("freeze", [FreezeParams(), FreezeParams(vision=1, text=1)], ids=["trained", "partly frozen"])
def test_checkpointing_recomputes_one_towers_blocks_and_gives_the_same_gradients(make_model, tower, freeze):
    plain, saving = make_model(text_layers=2).double(), make_model(text_layers=2).double()
    freeze_towers(plain, freeze)
    freeze_towers(saving, freeze)
    params = TrainParams(gradient_checkpointing=GradientCheckpointingParams(**{tower: True}))
    accelerate(saving, params, CPU)
    calls = {name: count_forwards(saving, name) for name in TOWERS}
    expected, actual = gradients(plain), gradients(saving)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=0, msg=name)
    # the last block is computed for its pooled token alone, which leaves nothing worth computing again
    is_trained = any(parameter.requires_grad for parameter in blocks(saving, tower)[0].parameters())
    other = TOWERS[1 - TOWERS.index(tower)]
    assert len(calls[tower]) == 2 + is_trained
    assert len(calls[other]) == 2


def test_without_it_no_block_is_computed_twice(make_model):
    model = make_model()
    accelerate(model, TrainParams(), CPU)
    calls = count_forwards(model, "vision")
    gradients(model)
    assert len(calls) == 2


def test_compiling_changes_no_name_of_a_weight(make_model):
    """A checkpoint of a compiled run loads everywhere."""
    plain, compiled = make_model(), make_model()
    accelerate(compiled, TrainParams(compile=True), CPU)
    PairEncoder(compiled, None, AugmentParams())
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_only_the_blocks_are_compiled_and_only_when_asked(make_model):
    model = make_model()
    accelerate(model, TrainParams(), CPU)
    assert not compiled_modules(model)
    accelerate(model, TrainParams(compile=True), CPU)
    assert compiled_modules(model) == [*blocks(model, "vision"), *blocks(model, "text")]


@pytest.mark.parametrize(("device", "is_compiled"), [(CPU, False), (CUDA, True)])
def test_blocks_are_compiled_by_default_on_a_gpu_only(make_model, monkeypatch, device, is_compiled):
    monkeypatch.setattr(torch, "set_float32_matmul_precision", Mock())
    model = make_model(text_layers=2)
    accelerate(model, TrainParams(), device)
    assert bool(compiled_modules(model)) == is_compiled


def test_batches_of_other_sizes_need_no_more_programs_than_there_is_room_for(make_model):
    """Training, validation and shorter last batches, and ever other numbers of distinct texts."""
    model = make_model(text_layers=3)
    torch._dynamo.reset()
    counters.clear()
    accelerate(model, TrainParams(compile=True), CPU)
    for block in (*model.vision.blocks, *model.text.blocks):
        if block._compiled_call_impl is not None:
            block.compile(backend="eager", dynamic=block in list(model.text.blocks))
    for training in (True, False):
        model.train(training)
        for count in range(2, 12):
            with torch.set_grad_enabled(training):
                model(torch.rand(count, 3, 28, 28), torch.randint(2, 32, (count, 8)))
    assert not counters["graph_break"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]


def compiled_modules(model):
    return [module for module in model.modules() if module._compiled_call_impl is not None]
