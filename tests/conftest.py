"""Small stand-ins that several test folders share."""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, SiglipTextConfig

from knee_siglip.data.batches import PairDataset
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

IMAGE_SIZE = 28
POSITIONS = 8
VOCABULARY = 32


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """No test touches the user's store or tracking databases."""
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_model() -> Callable[..., KneeRadDinoSigLIPModel]:
    """Build a model of a few thousand parameters, the same for the same seed."""

    def make(seed: int = 0, dropout: float = 0.0, **kwargs) -> KneeRadDinoSigLIPModel:
        torch.manual_seed(seed)
        vision = Dinov2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=14,
            use_mask_token=False,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        text = SiglipTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=POSITIONS,
            attention_dropout=dropout,
            pad_token_id=1,
            bos_token_id=None,
            eos_token_id=1,
        )
        return KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig(vision, text, bias_init=-2.0, **kwargs))

    return make


class ArrayPixels:
    """Pixels in memory, indexed as the cache is."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


@pytest.fixture
def make_pairs() -> Callable[..., PairDataset]:
    """Pairs that can be learnt: each text has its own brightness pattern."""

    def make(count: int = 24, distinct: int = 6, seed: int = 0) -> PairDataset:
        rng = np.random.default_rng(seed)
        patterns = np.random.default_rng(99).integers(40, 216, (distinct, IMAGE_SIZE, IMAGE_SIZE))
        text_ids = np.arange(count) % distinct
        noise = rng.normal(0, 8, (count, IMAGE_SIZE, IMAGE_SIZE))
        pixels = (patterns[text_ids] + noise).clip(0, 255).astype(np.uint8)
        tokens = np.random.default_rng(98).integers(2, VOCABULARY, (distinct, POSITIONS))
        return PairDataset(ArrayPixels(pixels), np.arange(count), torch.from_numpy(tokens), text_ids)

    return make
