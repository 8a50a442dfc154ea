"""A batch encoded in pieces gives the gradients of the whole, for every parameter."""

import pytest
import torch

from knee_siglip.training.accumulation import Pairs, backward_pairs


def pairs_of(dataset, dtype):
    batch = dataset.batch(torch.arange(len(dataset)).numpy(), torch.device("cpu"))
    return Pairs(batch.pixels.to(dtype), batch.input_ids, batch.text_ids)


def gradients(model, pairs, micro_batch_size):
    model.zero_grad()
    result = backward_pairs(model, pairs, micro_batch_size)
    return result, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("micro_batch_size", [1, 5, 8])
def test_pieces_equal_one_batch(make_model, make_pairs, dtype, tolerance, micro_batch_size):
    model = make_model().to(dtype)
    pairs = pairs_of(make_pairs(), dtype)
    whole, expected = gradients(model, pairs, len(pairs.pixels))
    pieces, actual = gradients(model, pairs, micro_batch_size)
    assert pieces.loss.item() == pytest.approx(whole.loss.item(), rel=tolerance)
    for name, gradient in expected.items():
        # softmax does not feel a constant added to all keys: this gradient is zero but for rounding
        if not name.endswith(("k_proj.bias", "key.bias")):
            assert (actual[name] - gradient).norm() < tolerance * gradient.norm(), name
    assert expected["logit_scale"].abs() > 0
    assert expected["logit_bias"].abs() > 0


def test_dropout_is_replayed_in_the_second_pass(make_model, make_pairs):
    """With other masks in the second pass, repeating the step from one random state would still differ from the truth:
    the gradient of each piece must belong to the very embeddings the loss saw."""
    model = make_model(dropout=0.5).train()
    pairs = pairs_of(make_pairs(), torch.float32)
    seen = []
    original = model.get_text_features
    model.get_text_features = lambda ids: seen.append(original(ids)) or seen[-1]
    torch.manual_seed(1)
    gradients(model, pairs, 8)
    first, second = seen[:3], seen[3:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_text_that_pairs_share_is_encoded_once(make_model, make_pairs):
    model = make_model()
    pairs = pairs_of(make_pairs(count=24, distinct=6), torch.float32)
    lengths = []
    original = model.get_text_features
    model.get_text_features = lambda ids: lengths.append(len(ids)) or original(ids)
    gradients(model, pairs, 24)
    assert lengths == [6]
