"""A model of a few thousand parameters, pairs that it can learn, and the gradients of a group of them."""

import math

import numpy as np
import torch

from knee_siglip.encoders.dinov2 import Dinov2Config
from knee_siglip.encoders.siglip_text import SiglipTextConfig
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import PairDataset
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.tracking.tracker import Tracker, open_tracker
from knee_siglip.training.accumulation import GradientCache
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import LocalBatch, PairEncoder

IMAGE_SIZE = 28
POSITIONS = 8
VOCABULARY = 32

KNEE = task_of(Params())
"""The task of the defaults."""


def toy_model(
    seed: int = 0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    text_layers: int = 1,
    vocabulary: int = VOCABULARY,
    **kwargs,
) -> KneeRadDinoSigLIPModel:
    """The same for the same seed."""
    torch.manual_seed(seed)
    vision = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=14,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        drop_path_rate=drop_path,
    )
    text = SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=text_layers,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        attention_dropout=dropout,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=1,
    )
    return KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig(vision, text, bias_init=-2.0, **kwargs))


class ArrayPixels:
    """Pixels in memory, indexed as the cache is."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def toy_pairs(count: int = 24, distinct: int = 6, seed: int = 0, studies: bool = False) -> PairDataset:
    """Each text has its own brightness pattern.

    studies: of every six images the last two are one study, each with a text that no other image has.
    """
    rng = np.random.default_rng(seed)
    text_ids, study_ids = np.arange(count) % distinct, np.arange(count)
    if studies:
        group, place = np.divmod(np.arange(count), 6)
        text_ids = np.where(place < 4, place, 2 * group + place)
        study_ids = np.where(place < 4, study_ids, count + group)
        distinct = int(text_ids.max()) + 1
    patterns = np.random.default_rng(99).integers(40, 216, (distinct, IMAGE_SIZE, IMAGE_SIZE))
    noise = rng.normal(0, 8, (count, IMAGE_SIZE, IMAGE_SIZE))
    pixels = (patterns[text_ids] + noise).clip(0, 255).astype(np.uint8)
    tokens = np.random.default_rng(98).integers(2, VOCABULARY, (distinct, POSITIONS))
    return PairDataset(ArrayPixels(pixels), np.arange(count), torch.from_numpy(tokens), text_ids, study_ids)


ALONE = Ranks()


def local_batch(pairs: PairDataset, step: int = 0, ranks: Ranks = ALONE) -> LocalBatch:
    """All pairs as one group, as far as this rank encodes them."""
    count = len(pairs)
    batch = pairs.batch(ranks.local_part(np.arange(count)))
    return LocalBatch(batch, count, math.ceil(count / ranks.size), seed=0, step=step)


def add_gradients(
    encoder: PairEncoder,
    local: LocalBatch,
    micro_batch_size: int,
    ranks: Ranks = ALONE,
    multi_positive: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode, loss and backward as `Trainer.train_step` has them; returns loss and accuracy."""
    cache = GradientCache(encoder, ranks, micro_batch_size)
    encoded = cache.encode(local)
    scale, bias = encoder.model.logit_scale.exp(), encoder.model.logit_bias
    ids = local.positive_ids(multi_positive), local.batch.match_ids
    embeds = encoded.image_embeds, encoded.text_embeds
    loss, accuracy = contrastive_loss(*embeds, scale, bias, *ids, local.group_size, ranks)
    loss.backward()
    cache.backward(encoded)
    return loss.detach(), accuracy


def open_without_dvclive(params: Params, *, facts: dict, run_key: str | None = None, **_: object) -> Tracker:
    """`open_tracker` of a training, without the process of DVCLive, which takes longer to start than toys to train."""
    return open_tracker(params, stage="sweep", facts=facts, run_key=run_key)
