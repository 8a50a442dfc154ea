"""Dropout by sample: right on average, the same in any company, and different everywhere else."""

import pytest
import torch

from knee_siglip.encoders.blocks import Attention
from knee_siglip.encoders.sample_dropout import SampleDropout, use_sample_dropout
from knee_siglip.pairs.randomness import sample_keys


def keys_of(count, seed=0):
    return sample_keys(seed, 0, torch.arange(count))


def test_the_share_that_is_dropped_and_the_scale_of_the_rest():
    dropout = SampleDropout(0.25, number=0)
    dropout.set_keys(keys_of(40))
    dropped = dropout(torch.ones(40, 50, 20))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped[dropped > 0].unique().tolist() == [pytest.approx(4 / 3)]


def test_whole_samples_are_dropped_as_wholes():
    dropout = SampleDropout(0.4, number=0, calls=2, whole=True)
    dropout.set_keys(keys_of(2000))
    dropped = dropout(torch.ones(2000, 3, 2)).flatten(1)
    assert (dropped.min(dim=1).values == dropped.max(dim=1).values).all()
    assert (dropped[:, 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.04)


def test_two_calls_of_one_pass_differ_and_a_recomputed_pass_repeats_them():
    dropout = SampleDropout(0.5, number=0, calls=2, whole=True)
    dropout.set_keys(keys_of(100))
    first, second, again = (dropout(torch.ones(100, 1)) for _ in range(3))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_evaluation_drops_nothing():
    dropout = SampleDropout(0.5, number=0).eval()
    values = torch.ones(3, 4)
    assert torch.equal(dropout(values), values)


def both_towers(model, keys, rows):
    """Embeddings of a part of 6 images and texts in training mode."""
    for encoder in (model.vision, model.text):
        for site in use_sample_dropout(encoder):
            site.set_keys(keys[rows])
    torch.manual_seed(0)
    pixels, tokens = torch.randn(6, 3, 28, 28), torch.randint(2, 32, (6, 8))
    return model.get_image_features(pixels[rows]), model.get_text_features(tokens[rows])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sample_is_encoded_alike_in_any_company(make_model, checkpointing):
    model = make_model(dropout=0.3, drop_path=0.3).double().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    keys = keys_of(6)
    whole = both_towers(model, keys, slice(0, 6))
    part = both_towers(model, keys, slice(4, 6))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[4:], b, rtol=1e-12, atol=1e-12)
    others = both_towers(model, keys_of(6, seed=1), slice(0, 6))
    for a, b in zip(whole, others, strict=True):
        assert (a - b).norm() > 0.05


def test_without_dropout_in_training_the_attention_is_that_of_the_library(make_model):
    plain, ours = make_model().eval(), make_model(dropout=0.3).eval()
    ours.load_state_dict(plain.state_dict())
    keys = keys_of(6)
    for a, b in zip(both_towers(plain, keys, slice(0, 6)), both_towers(ours, keys, slice(0, 6)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tower_without_dropout_keeps_its_fast_attention(make_model):
    model = make_model()
    assert use_sample_dropout(model.vision) == []
    assert not any(module.probability_dropout for module in model.modules() if isinstance(module, Attention))


def test_asking_twice_finds_the_same_sites(make_model):
    model = make_model(dropout=0.3, drop_path=0.3)
    first = use_sample_dropout(model.vision)
    assert first == use_sample_dropout(model.vision)
    # the embeddings, and in each of two blocks the attention and the drop path
    assert len(first) == 5
    assert len({site.number for site in first}) == 5
