"""Loss, contrastive accuracy and variety of answers on the validation pairs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from knee_siglip.metrics.matching.retrieval import Correct, contrastive_accuracy, shuffled_batches
from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.pairs.batches import PairDataset, split_groups
from knee_siglip.pairs.prefetch import Ahead, prefetch_batches
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import LocalBatch, PairEncoder

ANSWERED = 2048
"""Validation images, at most, whose nearest text is looked up: bounds time and memory."""


def measure_pairs(
    encoder: PairEncoder, pairs: PairDataset, ranks: Ranks, *, device: torch.device, batch_size: int, prefetch: Ahead
) -> dict[str, float]:
    """`loss`, `contrastive_accuracy` and `top_text_share` in evaluation mode; each rank encodes its part.

    The first two are measured in the evaluation's batches of 64, whatever `batch_size` (pairs encoded at a time), so
    that runs of different batch sizes compare. The third is `top_text_share` over all batches.
    """
    was_training = encoder.training
    encoder.eval()
    model, match_ids = encoder.model, pairs.match_ids
    images = [torch.empty(0, model.text.width, dtype=model.logit_scale.dtype, device=device)]
    texts = list(images)
    groups = list(split_groups(ranks.local_part(np.arange(len(pairs))), batch_size))
    for batch in prefetch_batches(pairs.batch, groups, device, prefetch):
        # evaluation mode draws nothing, so seed and step do not matter
        local = LocalBatch(batch, group_size=len(batch), largest=len(batch), seed=0, step=0)
        ((image_embeds, text_embeds),) = encoder.encode_all(local, [slice(0, len(batch))])
        images.append(image_embeds)
        texts.append(text_embeds)
    encoder.train(was_training)
    image_embeds = ranks.gather(torch.cat(images), len(pairs)).cpu()
    text_embeds = ranks.gather(torch.cat(texts), len(pairs)).cpu()
    scale, bias = model.logit_scale.detach().exp().cpu(), model.logit_bias.detach().cpu()
    losses = [
        sigmoid_loss(image_embeds[rows], text_embeds[rows], scale, bias, match_ids[rows]).item()
        for rows in shuffled_batches(len(pairs))
    ]
    correct = Correct(*match_ids.numpy().T)
    accuracy = contrastive_accuracy(image_embeds.numpy(), text_embeds.numpy(), correct)
    return {
        "loss": float(np.mean(losses)),
        "contrastive_accuracy": accuracy,
        "top_text_share": top_text_share(image_embeds, text_embeds, pairs.text_ids),
    }


def top_text_share(image_embeds: Tensor, text_embeds: Tensor, text_ids: Tensor) -> float:
    """Share of the images whose nearest text is the one that is nearest most often; 1: all get the same text.

    Of at most `ANSWERED` images, drawn once, and their distinct texts.

    Args:
        image_embeds, text_embeds: (N, D), L2-normalised; row i belongs to text_ids[i].
        text_ids: (N,) equal where the texts are.
    """
    drawn = shuffled_batches(len(text_ids), ANSWERED)[0]
    distinct, places = np.unique(text_ids.numpy()[drawn], return_index=True)
    nearest = (image_embeds[drawn] @ text_embeds[drawn[places]].T).argmax(dim=1)
    return float(nearest.bincount(minlength=len(distinct)).max() / len(drawn))


def constant_loss(match_ids: Tensor, groups: Sequence[np.ndarray]) -> float:
    """Loss of a model without any information: the mean over the groups of the best loss at one logit for all pairs.

    Of B pairs a share p of the B^2 combinations is positive; with sigmoid(logit) = p each of the B^2 terms of the loss
    is on average the entropy of p, and their sum is divided by B.

    Args:
        match_ids: (N, K), equal in a column where image and text are a positive pair.
    """
    losses = []
    for rows in groups:
        ids = match_ids[rows]
        share = (ids[:, None] == ids[None, :]).any(dim=-1).double().mean()
        entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
        losses.append(len(rows) * entropy.item())
    return float(np.mean(losses))
