"""The sigmoid loss against a five-line reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from knee_siglip.model.loss import batch_accuracy, sigmoid_loss


def reference(image_embeds, text_embeds, scale, bias, same):
    total = 0.0
    for i, image in enumerate(image_embeds):
        for j, text in enumerate(text_embeds):
            y = 1.0 if same(i, j) else -1.0
            total += -math.log(1 / (1 + math.exp(-y * (scale * float(image @ text) + bias))))
    return total / len(image_embeds)


@pytest.fixture
def embeds():
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]


def test_loss_equals_the_plain_double_loop(embeds):
    loss = sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5))
    assert loss.item() == pytest.approx(reference(*embeds, 9.0, -1.5, lambda i, j: i == j), rel=1e-12)


def test_equal_texts_are_positives_too(embeds):
    text_ids = torch.tensor([0, 1, 0, 2, 2, 2, 3])
    loss = sigmoid_loss(*embeds, torch.tensor(9.0), torch.tensor(-1.5), text_ids)
    expected = reference(*embeds, 9.0, -1.5, lambda i, j: text_ids[i] == text_ids[j])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


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


def test_batch_accuracy_counts_an_equal_text_as_correct():
    images = torch.eye(3)
    texts = torch.eye(3)[[1, 0, 2]]
    assert batch_accuracy(images, texts, torch.tensor([0, 1, 2])).item() == pytest.approx(1 / 3)
    assert batch_accuracy(images, texts, torch.tensor([0, 0, 2])).item() == 1.0
