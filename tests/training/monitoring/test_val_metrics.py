import numpy as np
import pytest
import torch
from torch.nn import functional as F

from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.training.monitoring.val_metrics import constant_loss, top_text_share


def test_no_logit_for_all_pairs_beats_the_constant_loss():
    """Constant embeddings with every bias, against the loss itself."""
    ids = torch.tensor([[0, 0, 1, 2, 3, 3, 3, 4], [0, 1, 1, 2, 3, 4, 5, 6]]).T
    same = F.normalize(torch.ones(8, 4), dim=-1)
    biases = torch.linspace(-4, 2, 601)
    losses = [sigmoid_loss(same, same, torch.tensor(0.0), bias, ids).item() for bias in biases]
    assert min(losses) == pytest.approx(constant_loss(ids, [np.arange(8)]), rel=1e-4)


def test_the_share_of_the_most_frequent_answer():
    texts = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    ids = torch.tensor([0, 1, 2, 3, 0, 1])
    assert top_text_share(torch.eye(4)[[2] * 6], texts, ids) == 1.0
    assert top_text_share(torch.eye(4)[[0, 1, 2, 3, 3, 3]], texts, ids) == 0.5
    assert top_text_share(texts, texts, ids) == pytest.approx(2 / 6)
