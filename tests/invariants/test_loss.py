"""The sigmoid loss against a five-line reference, whatever its tiles."""

import math

import pytest
import torch
from torch.nn import functional as F

from knee_siglip.model import loss as loss_module
from knee_siglip.model.loss import Modality, add_pairs, sigmoid_loss
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks

COUNT = 37


def reference(image_embeds, text_embeds, scale, bias, same):
    total = 0.0
    for i, image in enumerate(image_embeds):
        for j, text in enumerate(text_embeds):
            y = 1.0 if same(i, j) else -1.0
            total += -math.log(1 / (1 + math.exp(-y * (scale * float(image @ text) + bias))))
    return total / len(image_embeds)


def autograd_reference(image_embeds, text_embeds, scale, bias, ids):
    logits = scale * image_embeds @ text_embeds.T + bias
    ids = ids.view(len(ids), -1)
    y = torch.where((ids[:, None] == ids[None]).any(dim=2), 1.0, -1.0)
    return -F.logsigmoid(y * logits).sum() / len(logits)


def trained_loss(image_embeds, text_embeds, scale, bias, ids):
    """The loss as training has it, with gradients; ids: (B,), or (B, K) of which any column may agree."""
    ids = ids.view(len(ids), -1)
    return contrastive_loss(image_embeds, text_embeds, scale, bias, ids, ids, len(ids), Ranks())[0]


@pytest.fixture
def embeds():
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]


def leaves(dtype=torch.float64, scale=9.0, bias=-1.5):
    generator = torch.Generator().manual_seed(1)
    embeds = [F.normalize(torch.randn(COUNT, 5, generator=generator), dim=-1) for _ in range(2)]
    return [leaf.to(dtype).requires_grad_() for leaf in (*embeds, torch.tensor(scale), torch.tensor(bias))]


def test_loss_equals_the_plain_double_loop(embeds):
    loss = sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5))
    assert loss.item() == pytest.approx(reference(*embeds, 9.0, -1.5, lambda i, j: i == j), rel=1e-12)


def test_equal_texts_are_positives_too(embeds):
    text_ids = torch.tensor([0, 1, 0, 2, 2, 2, 3])
    loss = sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5), text_ids[:, None])
    expected = reference(*embeds, 9.0, -1.5, lambda i, j: text_ids[i] == text_ids[j])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_texts_of_one_study_are_positives_but_not_what_only_shares_a_text_with_them(embeds):
    texts, studies = torch.tensor([0, 1, 1, 2, 3, 4, 5]), torch.tensor([8, 8, 9, 9, 9, 7, 6])
    loss = sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5), torch.stack([texts, studies], dim=1))
    expected = reference(*embeds, 9.0, -1.5, lambda i, j: texts[i] == texts[j] or studies[i] == studies[j])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tile", [1, 10, 36, 37, 1000])
@pytest.mark.parametrize("study_size", [1, 3])
def test_tiles_equal_the_whole_in_loss_and_gradients(monkeypatch, dtype, tolerance, tile, study_size):
    monkeypatch.setattr(loss_module, "TILE", tile)
    ids = torch.stack([torch.arange(COUNT) % 11, torch.arange(COUNT) // study_size], dim=1)
    ours, plain = leaves(dtype), leaves(dtype)
    # an outer factor, as of a loss scaler, reaches every gradient
    loss, expected = 3 * trained_loss(*ours, ids), 3 * autograd_reference(*plain, ids)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert 3 * sigmoid_loss(*ours, ids).item() == pytest.approx(loss.item(), rel=tolerance)
    for gradient, right in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, plain), strict=True):
        assert (gradient - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize(("scale", "bias"), [(112.0, -16.0), (1000.0, 0.0), (0.001, -100.0)])
def test_extreme_logits_stay_exact(scale, bias):
    """Released SigLIP models have scales up to 112."""
    ours, plain = leaves(torch.float32, scale, bias), leaves(torch.float64, scale, bias)
    ids = torch.arange(COUNT)
    loss, expected = trained_loss(*ours, ids), autograd_reference(*plain, ids)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, right in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, plain), strict=True):
        assert (gradient.double() - right).norm() <= 1e-4 * right.norm()


def test_what_autograd_keeps_grows_with_the_batch_and_not_with_its_square():
    def saved_bytes(count):
        images = F.normalize(torch.randn(count, 16), dim=-1).requires_grad_()
        texts = F.normalize(torch.randn(count, 16), dim=-1).requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
            trained_loss(images, texts, torch.tensor(9.0), torch.tensor(-1.5), torch.arange(count))
        return sum(kept)

    assert saved_bytes(2048) == pytest.approx(8 * saved_bytes(256), rel=0.01)
    assert saved_bytes(2048) < 2.1 * 2048 * 16 * 4


@pytest.mark.parametrize(("bias", "expected"), [(-10.0, 10.15), (-math.log(15), 3.99)])
def test_start_of_the_paper_and_of_the_prior(bias, expected):
    """Random embeddings of 16 pairs, scale 1/0.07: the figures of the project's measurements."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(50):
        pair = [F.normalize(torch.randn(16, 256, generator=generator), dim=-1) for _ in range(2)]
        losses.append(sigmoid_loss(*pair, torch.tensor(1 / 0.07), torch.tensor(bias)).item())
    assert sum(losses) / len(losses) == pytest.approx(expected, abs=0.3)


def test_loss_is_float32_under_autocast(embeds):
    pair = [part.float() for part in embeds]
    plain = sigmoid_loss(*pair, torch.tensor(9.0), torch.tensor(-1.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sigmoid_loss(*pair, torch.tensor(9.0), torch.tensor(-1.5))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_the_setting_of_tf32_is_given_back(embeds):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def correct(image_embeds, text_embeds, ids):
    ids = ids[:, None]
    images, texts = Modality.begin(image_embeds, ids, ids), Modality.begin(text_embeds, ids, ids)
    add_pairs(images, texts, torch.tensor(9.0), torch.tensor(-1.5))
    return images.correct().tolist(), texts.correct().tolist()


@pytest.mark.parametrize("tile", [1, 2, 1024])
def test_accuracy_counts_an_equal_text_as_correct(monkeypatch, tile):
    monkeypatch.setattr(loss_module, "TILE", tile)
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    assert correct(images, texts, torch.tensor([0, 1, 2])) == ([False, False, True], [False, False, True])
    assert correct(images, texts, torch.tensor([0, 0, 2])) == ([True] * 3, [True] * 3)


def test_a_collapsed_model_is_never_correct():
    constant = torch.ones(6, 4) / 2
    assert correct(constant, constant, torch.arange(6)) == ([False] * 6, [False] * 6)
