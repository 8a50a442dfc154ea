"""Loss and contrastive accuracy of the validation pairs."""

import numpy as np
import torch
from torch import Tensor

from knee_siglip.metrics.matching.retrieval import contrastive_accuracy, shuffled_batches
from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.pairs.batches import PairDataset, split_groups
from knee_siglip.pairs.prefetch import Ahead, Prefetcher
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import LocalBatch, PairEncoder


def measure_pairs(
    encoder: PairEncoder, pairs: PairDataset, ranks: Ranks, *, device: torch.device, batch_size: int, prefetch: Ahead
) -> dict[str, float]:
    """`loss` and `contrastive_accuracy`, in the evaluation's batches of 64 and in evaluation mode.

    They do not follow `batch_size` (what is encoded at a time), so that runs of different batch sizes compare.
    """
    was_training = encoder.training
    encoder.eval()
    image_embeds, text_embeds = _embed(encoder, pairs, ranks, device, batch_size, prefetch)
    encoder.train(was_training)
    text_ids = pairs.text_ids
    scale, bias = encoder.model.logit_scale.detach().exp().cpu(), encoder.model.logit_bias.detach().cpu()
    losses = [
        sigmoid_loss(image_embeds[rows], text_embeds[rows], scale, bias, text_ids[rows]).item()
        for rows in shuffled_batches(len(text_ids))
    ]
    accuracy = contrastive_accuracy(image_embeds.numpy(), text_embeds.numpy(), text_ids.numpy())
    return {"loss": float(np.mean(losses)), "contrastive_accuracy": accuracy}


def _embed(
    encoder: PairEncoder, pairs: PairDataset, ranks: Ranks, device: torch.device, batch_size: int, prefetch: Ahead
) -> tuple[Tensor, Tensor]:
    """(N, D) image and text embeddings on the CPU; each rank encodes its part."""
    groups = list(split_groups(ranks.local_part(np.arange(len(pairs))), batch_size))
    width = encoder.model.text.width
    images = [torch.empty(0, width, dtype=encoder.model.logit_scale.dtype, device=device)]
    texts = list(images)
    for batch in Prefetcher(pairs.batch, groups, device, prefetch):
        # evaluation mode draws nothing, so seed and step do not matter
        local = LocalBatch(batch, group_size=len(batch), largest=len(batch), seed=0, step=0)
        for image_embeds, text_embeds in encoder.encode_all(local, [slice(0, len(batch))]):
            images.append(image_embeds)
            texts.append(text_embeds)
    image_embeds = ranks.gather(torch.cat(images), len(pairs)).cpu()
    return image_embeds, ranks.gather(torch.cat(texts), len(pairs)).cpu()
