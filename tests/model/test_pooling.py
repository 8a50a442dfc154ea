"""The short last block gives what the library's whole one gives, gradients included."""

import pytest
import torch

from knee_siglip.model.pooling import cls_token, last_position

PIXELS = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.randint(2, 32, (3, 8), generator=torch.Generator().manual_seed(0))

TOWERS = {
    "vision": (
        lambda model: cls_token(model.vision_model, PIXELS),
        lambda model: model.vision_model(PIXELS).last_hidden_state[:, 0],
    ),
    "text": (
        lambda model: last_position(model.text_model, TOKENS),
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
