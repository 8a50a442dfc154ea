"""A group encoded in pieces gives the gradients of the whole, for every parameter, with dropout and augmentation."""

import pytest
import torch
from torch.nn import functional as F

from knee_siglip.encoders.sample_dropout import SampleDropout
from knee_siglip.params.sections import AugmentParams
from knee_siglip.training.encoder import PairEncoder
from toys import add_gradients, local_batch


def gradients(model, dataset, micro_batch_size, step=0, **options):
    model.zero_grad()
    encoder = PairEncoder(model, None, AugmentParams())
    loss, accuracy = add_gradients(encoder, local_batch(dataset, step), micro_batch_size, **options)
    return loss, accuracy, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def plain_gradients(model, dataset, step=0):
    """One forward pass of everything, the loss in five lines, autograd."""
    model.zero_grad()
    encoder = PairEncoder(model, None, AugmentParams())
    image_embeds, text_embeds = encoder(*encoder.inputs(local_batch(dataset, step), slice(0, len(dataset))))
    logits = model.logit_scale.exp() * image_embeds @ text_embeds.T + model.logit_bias
    same = (dataset.match_ids[:, None] == dataset.match_ids[None]).any(dim=2)
    loss = -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(dataset)
    loss.backward()
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal(actual, expected, tolerance):
    for name, gradient in expected.items():
        # softmax does not feel a constant added to all keys: this gradient is zero but for rounding
        if not name.endswith("k_proj.bias"):
            assert (actual[name] - gradient).norm() < tolerance * gradient.norm(), name
    assert expected["logit_scale"].abs() > 0
    assert expected["logit_bias"].abs() > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("micro_batch_size", [1, 5, 8, 24])
@pytest.mark.parametrize("studies", [False, True])
def test_pieces_equal_one_batch_with_dropout_and_augmentation(
    make_model, make_pairs, dtype, tolerance, micro_batch_size, studies
):
    model, pairs = make_model(dropout=0.2, drop_path=0.2).to(dtype).train(), make_pairs(studies=studies)
    loss, expected = plain_gradients(model, pairs)
    pieces, _, actual = gradients(model, pairs, micro_batch_size)
    assert pieces.item() == pytest.approx(loss.item(), rel=tolerance)
    assert_equal(actual, expected, tolerance)


def test_gradient_checkpointing_changes_no_gradient(make_model, make_pairs):
    model = make_model(dropout=0.2, drop_path=0.2).double().train()
    _, _, expected = gradients(model, make_pairs(), 7)
    model.activation_checkpointing_enable()
    _, _, actual = gradients(model, make_pairs(), 7)
    assert_equal(actual, expected, 1e-10)


def test_dropout_and_augmentation_differ_from_step_to_step(make_model, make_pairs):
    model = make_model(dropout=0.2).train()
    first, second = (gradients(model, make_pairs(), 24, step)[0] for step in (0, 1))
    assert (first - second).abs() > 1e-3


def test_evaluation_mode_has_neither(make_model, make_pairs):
    model = make_model(dropout=0.2).eval()
    first, second = (gradients(model, make_pairs(), 24, step)[0] for step in (0, 1))
    assert torch.equal(first, second)


def test_a_text_that_pairs_share_is_encoded_once(make_model, make_pairs):
    model = make_model()
    lengths = []
    original = model.get_text_features
    model.get_text_features = lambda ids: lengths.append(len(ids)) or original(ids)
    gradients(model, make_pairs(count=24, distinct=6), 24)
    assert lengths == [6]


def test_without_multi_positive_only_the_own_text_is_positive(make_model, make_pairs):
    model = make_model().double().eval()
    pairs = make_pairs(count=24, distinct=6)
    loss, _, _ = gradients(model, pairs, 24, multi_positive=False)
    encoder = PairEncoder(model, None, AugmentParams())
    images, texts = encoder(*encoder.inputs(local_batch(pairs), slice(0, 24)))
    logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
    expected = -F.logsigmoid(torch.where(torch.eye(24, dtype=torch.bool), logits, -logits)).sum() / 24
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_accuracy_is_that_of_the_whole_group(make_model, make_pairs):
    model = make_model().eval()
    pairs = make_pairs()
    encoder = PairEncoder(model, None, AugmentParams())
    images, texts = encoder(*encoder.inputs(local_batch(pairs), slice(0, 24)))
    similarity, ids = images @ texts.T, pairs.text_ids
    to_text = (ids[similarity.argmax(dim=1)] == ids).float().mean()
    to_image = (ids[similarity.argmax(dim=0)] == ids).float().mean()
    for micro_batch_size in (5, 24):
        accuracy = gradients(model, pairs, micro_batch_size)[1]
        assert accuracy.item() == pytest.approx(((to_text + to_image) / 2).item())


def test_dropout_is_really_on_in_these_tests(make_model, make_pairs):
    model = make_model(dropout=0.2, drop_path=0.2).train()
    gradients(model, make_pairs(), 24)
    sites = [module for module in model.modules() if isinstance(module, SampleDropout)]
    assert len(sites) == 1 + 2 * 2 + 1
    assert all(len(site.keys) for site in sites)
