import pytest
import torch

from knee_siglip.core.errors import UsageError
from knee_siglip.params.sections import FreezeParams, TrainParams
from knee_siglip.training.optimizer import build_optimizer, freeze_towers

PARAMS = TrainParams(learning_rate=5e-3)
JOINTS = {"logit_scale", "logit_bias", "visual_projection.weight", "visual_projection.bias"}


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def everything(model):
    return {name for name, _ in model.named_parameters()}


def starting_with(model, *beginnings):
    return {name for name in everything(model) if name.startswith(beginnings)}


def factors(model, params):
    """Share of `learning_rate` by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, params).param_groups
    return {names[id(p)]: group["lr"] / params.learning_rate for group in groups for p in group["params"]}


def test_none_trains_everything(make_model):
    model = make_model()
    freeze_towers(model, FreezeParams())
    assert trained(model) == everything(model)


def test_all_trains_the_other_tower_and_what_joins_them(make_model):
    model = make_model()
    freeze_towers(model, FreezeParams(vision="all"))
    assert trained(model) == JOINTS | starting_with(model, "text_model.")
    freeze_towers(model, FreezeParams(text="all"))
    assert trained(model) == JOINTS | starting_with(model, "vision_model.")


def test_a_number_trains_the_last_blocks_and_what_follows_them(make_model):
    model = make_model()
    freeze_towers(model, FreezeParams(vision=1, text="all"))
    kept = JOINTS | starting_with(model, "vision_model.encoder.layer.1.", "vision_model.layernorm.")
    assert trained(model) == kept
    freeze_towers(model, FreezeParams(vision="all", text=1))
    after = ("text_model.encoder.layers.0.", "text_model.final_layer_norm.", "text_model.head.")
    assert trained(model) == JOINTS | starting_with(model, *after)


def test_the_number_of_all_blocks_still_keeps_the_embeddings(make_model):
    model = make_model()
    freeze_towers(model, FreezeParams(vision=2))
    assert trained(model) == everything(model) - starting_with(model, "vision_model.embeddings.")


@pytest.mark.parametrize(("tower", "blocks"), [("vision", 2), ("text", 1)])
def test_more_blocks_than_there_are_is_a_mistake_that_names_them(make_model, tower, blocks):
    with pytest.raises(UsageError, match=rf"train\.freeze\.{tower} = 9: the {tower} tower has {blocks} blocks"):
        freeze_towers(make_model(), FreezeParams(**{tower: 9}))


def test_lower_layers_learn_by_the_formula_of_layer_decay(make_model):
    """Vision has 2 blocks, text 1: block i of L at decay ** (L + 1 - i)."""
    params = TrainParams(layer_decay=0.5, vision_learning_rate_scale=0.1)
    expected = {
        "vision_model.embeddings.": 0.1 * 0.5**3,
        "vision_model.encoder.layer.0.": 0.1 * 0.5**2,
        "vision_model.encoder.layer.1.": 0.1 * 0.5,
        "vision_model.layernorm.": 0.1,
        "text_model.embeddings.": 0.5**2,
        "text_model.encoder.layers.0.": 0.5,
        "text_model.final_layer_norm.": 1,
        "text_model.head.": 1,
        "visual_projection.": 1,
        "logit_": 1,
    }
    for name, factor in factors(make_model(), params).items():
        assert factor == pytest.approx(next(value for start, value in expected.items() if name.startswith(start))), name


def test_without_layer_decay_only_the_image_encoder_is_slower(make_model):
    for name, factor in factors(make_model(), TrainParams(vision_learning_rate_scale=0.1)).items():
        assert factor == pytest.approx(0.1 if name.startswith("vision_model.") else 1)


@pytest.mark.parametrize("freeze", [FreezeParams(), FreezeParams(vision="all", text="all"), FreezeParams(vision=1)])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_trained_parameter_is_in_one_group_and_the_first_has_the_full_rate(make_model, freeze, layer_decay):
    model = make_model()
    freeze_towers(model, freeze)
    params = TrainParams(learning_rate=5e-3, layer_decay=layer_decay)
    groups = build_optimizer(model, params).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert groups[0]["lr"] == params.learning_rate


def test_weight_decay_spares_scale_bias_and_norms(make_model):
    model = make_model()
    optimizer = build_optimizer(model, PARAMS)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert {"visual_projection.weight", "text_model.embeddings.token_embedding.weight"} <= names
    spared = ("norm", "lambda", "logit", "bias")
    assert not [name for name in names if any(word in name for word in spared)]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, PARAMS.weight_decay}


def test_a_step_can_be_skipped_on_the_device(make_model):
    model = make_model()
    optimizer = build_optimizer(model, PARAMS)
    before = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
