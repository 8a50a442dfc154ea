"""SimCLR (Chen et al. 2020, arXiv:2002.05709) on images alone: two changed copies of one image attract.

An encoder that was pretrained on other pictures learns here what the user's images look like, without their texts.
"""

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.augmentation import augment
from knee_siglip.pairs.batches import Pixels, epoch_order, split_groups
from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.params.sections import AugmentParams, WarmUpParams
from knee_siglip.training.distributed import Ranks

logger = logging.getLogger(__name__)

CHANGES = AugmentParams(rotation=8, shift=0.06, scale=0.1, brightness=0.15, contrast=0.3, gamma=0.2, noise=0.05)
"""Two copies must differ more than the contrastive stage's images do: otherwise telling them apart teaches little."""

TEMPERATURE = 0.1
HEAD_WIDTH = 64
STREAM = 2**32
"""Streams of random keys that no training step uses."""


def warm_up(
    model: KneeRadDinoSigLIPModel,
    pixels: Pixels,
    rows: np.ndarray,
    params: WarmUpParams,
    *,
    seed: int,
    dtype: torch.dtype | None,
    ranks: Ranks,
    check_stop: Callable[[], None],
) -> list[float]:
    """Train the model's image encoder, in place, on the pixels of `rows` (n,); returns each epoch's mean loss.

    Every rank does the same work, and all go on with the first one's weights. The projection head is thrown away.

    Args:
        dtype: autocast type; None computes in the weights' own.
        check_stop: raises what ends the training where a signal has asked for it.
    """
    device = model.device
    head = _projection_head(model.vision.width, seed).to(device)
    parameters = [*model.vision_model.parameters(), *head.parameters()]
    optimizer = AdamW(parameters, lr=params.learning_rate, weight_decay=0.01)
    steps = params.epochs * len(_groups(rows, params.batch_size, seed, 0))
    schedule = LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
    model.eval()  # the changes of the images are all the randomness
    losses: list[float] = []
    for epoch in track(range(params.epochs), "Images alone", disable=not ranks.is_first):
        total = 0.0
        groups = _groups(rows, params.batch_size, seed, epoch)
        for step, group in enumerate(groups, start=epoch * len(groups)):
            check_stop()
            images = torch.from_numpy(pixels[group]).to(device)
            keys = [sample_keys(seed, STREAM + 2 * step + copy, torch.from_numpy(group)).to(device) for copy in (0, 1)]
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                views = [head(model.vision_features(model.normalise_grey(augment(images, CHANGES, k)))) for k in keys]
            loss = ntxent_loss(views[0].float(), views[1].float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / len(groups))
    for parameter in model.vision_model.parameters():
        parameter.data.copy_(ranks.broadcast(parameter.data.cpu()))
    logger.warning("warm-up on %d images: loss %.3f, then %.3f", len(rows), losses[0], losses[-1])
    return losses


def ntxent_loss(first: Tensor, second: Tensor) -> Tensor:
    """() normalised temperature-scaled cross entropy of two copies (B, D) of the same images, in either direction.

    A copy's partner is told from the other images' copies of the other kind, as in CLIP.
    """
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _projection_head(width: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):  # the contrastive stage draws what it would draw without a warm-up
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, HEAD_WIDTH))


def _rate_factor(step: int, steps: int) -> float:
    """Up during the first tenth of the steps, then down to zero along a cosine."""
    return min((step + 1) / (0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))


def _groups(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of each step; an incomplete last batch is left out, unless it is the only one."""
    order = rows[epoch_order(len(rows), seed, epoch)]
    groups = list(split_groups(order, batch_size))
    return groups[:-1] if len(groups) > 1 and len(groups[-1]) < batch_size else groups
