"""Loss and contrastive accuracy of the validation pairs."""

import numpy as np
import torch

from knee_siglip.metrics.matching.retrieval import Correct, contrastive_accuracy, shuffled_batches
from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.pairs.batches import PairDataset, split_groups
from knee_siglip.pairs.prefetch import Ahead, prefetch_batches
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import LocalBatch, PairEncoder


def measure_pairs(
    encoder: PairEncoder, pairs: PairDataset, ranks: Ranks, *, device: torch.device, batch_size: int, prefetch: Ahead
) -> dict[str, float]:
    """`loss` and `contrastive_accuracy` in evaluation mode; each rank encodes its part.

    Both are measured in the evaluation's batches of 64, whatever `batch_size` (pairs encoded at a time), so that runs
    of different batch sizes compare.
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
    return {"loss": float(np.mean(losses)), "contrastive_accuracy": accuracy}
