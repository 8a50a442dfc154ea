"""The gradients of one contrastive group on one device, without an optimizer: encode, loss and backward of a step."""

from torch import Tensor

from knee_siglip.training.accumulation import GradientCache
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import LocalBatch, PairEncoder


def add_gradients(encoder: PairEncoder, group: LocalBatch, micro_batch_size: int) -> Tensor:
    """Add them to the parameters' `.grad`; returns the loss ()."""
    ranks = Ranks()
    cache = GradientCache(encoder, ranks, micro_batch_size)
    encoded = cache.encode(group)
    loss, _ = contrastive_loss(
        encoded.image_embeds,
        encoded.text_embeds,
        encoder.model.logit_scale.exp(),
        encoder.model.logit_bias,
        group.batch.match_ids,
        group.batch.match_ids,
        group.group_size,
        ranks,
    )
    loss.backward()
    cache.backward(encoded)
    return loss.detach()
