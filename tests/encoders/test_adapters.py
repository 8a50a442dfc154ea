"""Low-rank adapters: exact however a batch is encoded, and an ordinary model once merged."""

import pytest
import torch

from knee_siglip.encoders.adapters import merged_state_dict
from knee_siglip.params.sections import AugmentParams, FreezeParams, LoraParams, TrainParams
from knee_siglip.training.encoder import PairEncoder
from knee_siglip.training.optimizer import build_optimizer, freeze_towers
from toys import add_gradients, local_batch, toy_model, toy_pairs

BOTH = FreezeParams(vision="lora", text="lora")


def adapted(dropout=0.0, freeze=BOTH, **options):
    """A toy model whose adapters are no longer at their start, where B is zero."""
    model = toy_model(**options)
    freeze_towers(model, freeze, LoraParams(rank=4, alpha=8, dropout=dropout))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model, micro_batch_size):
    model.zero_grad()
    encoder = PairEncoder(model, None, AugmentParams())
    loss, _ = add_gradients(encoder, local_batch(toy_pairs()), micro_batch_size)
    return loss, {name: model.get_parameter(name).grad.clone() for name in trained(model)}


def test_a_new_adapter_changes_nothing_and_everything_else_of_its_tower_is_frozen():
    plain, model = toy_model().eval(), toy_model().eval()
    before = set(dict(model.named_parameters()))
    freeze_towers(model, BOTH, LoraParams(rank=4))
    joints = {name for name in before if name.startswith(("logit", "visual_projection"))}
    adapters = trained(model) - joints
    assert joints < trained(model)
    # q, k, v, output and two of the MLP: in two image blocks and one text block, A and B of each
    assert len(adapters) == 6 * 3 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in adapters)
    pixels, ids = torch.rand(2, 3, 28, 28), torch.randint(2, 32, (2, 8))
    torch.testing.assert_close(model(pixels, ids), plain(pixels, ids), rtol=1e-5, atol=1e-6)


def test_every_adapter_of_both_towers_takes_part():
    """A fused product that read the base weights alone would leave adapters without a gradient."""
    _, grads = gradients(adapted(), 24)
    assert all(gradient.abs().max() > 0 for gradient in grads.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch_size", [1, 5, 24])
def test_pieces_equal_one_batch_with_the_adapters_dropout_too(micro_batch_size, dropout):
    model = adapted(dropout).double().train()
    encoder = PairEncoder(model, None, AugmentParams())
    images, texts = encoder(*encoder.inputs(local_batch(toy_pairs()), slice(0, 24)))
    ids = toy_pairs().text_ids
    same = 2.0 * (ids[:, None] == ids[None]) - 1
    logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
    expected_loss = -torch.nn.functional.logsigmoid(same * logits).sum() / 24
    expected_loss.backward()
    expected = {name: model.get_parameter(name).grad.clone() for name in trained(model)}
    loss, actual = gradients(model, micro_batch_size)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-10)
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-10 * gradient.norm(), name


def test_dropout_of_adapters_is_on_in_training_only():
    model = adapted(dropout=0.5).train()
    with_dropout, _ = gradients(model, 24)
    without, _ = gradients(model.eval(), 24)
    assert (with_dropout - without).abs() > 1e-4


def test_gradient_checkpointing_changes_no_gradient():
    model = adapted(dropout=0.3).double().train()
    _, expected = gradients(model, 7)
    model.activation_checkpointing_enable()
    _, actual = gradients(model, 7)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-14)


def test_the_optimizer_holds_the_adapters_and_what_joins_the_towers_only():
    model = adapted(freeze=FreezeParams(vision="lora", text="all"))
    params = TrainParams(learning_rate=1e-3, layer_decay=0.5, vision_learning_rate_scale=0.1, weight_decay=0.02)
    optimizer = build_optimizer(model, params)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(groups) == trained(model)
    for name, group in groups.items():
        if name.startswith("vision_model.encoder.layer.0."):
            assert group["lr"] == pytest.approx(1e-3 * 0.1 * 0.25)
            assert group["weight_decay"] == 0.02


def test_merged_weights_give_what_the_adapters_give_and_need_no_adapters():
    model, plain = adapted().eval(), toy_model(seed=9).eval()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merged_state_dict(model)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    pixels, ids = torch.rand(4, 3, 28, 28), torch.randint(2, 32, (4, 8))
    torch.testing.assert_close(plain(pixels, ids), model(pixels, ids), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_adapters_is_stored_as_it_is():
    model = toy_model()
    merged = merged_state_dict(model)
    assert list(merged) == list(model.state_dict())
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())
