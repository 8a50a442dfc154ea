"""Towers of the same sizes in this project, in open_clip and in Hugging Face transformers, with random weights."""

import math
from dataclasses import dataclass
from typing import Any

import peers  # noqa: F401  # before transformers
from transformers import Dinov2Config, SiglipConfig, SiglipTextConfig

from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel

END = 1
"""SigLIP's end token, which is its padding too."""


@dataclass(frozen=True)
class Tower:
    """A transformer of `layers` blocks."""

    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4


@dataclass(frozen=True)
class Sizes:
    """Both towers. `image_size`: of the table of positions, in pixels; `positions`: of the text."""

    name: str
    vision: Tower
    patch: int
    image_size: int
    text: Tower
    positions: int = 64
    vocabulary: int = 1536


SMALL = Sizes("small", Tower(96, 4, 3, mlp_ratio=2), 28, 224, Tower(128, 2, 4, mlp_ratio=2))
VIT_S = Sizes("vit-s", Tower(384, 12, 6), 14, 224, Tower(384, 12, 6))
BASE = Sizes("RAD-DINO + SigLIP base", Tower(768, 12, 12), 14, 518, Tower(768, 12, 12), vocabulary=32000)
TOY = Sizes("toy", Tower(32, 2, 2, mlp_ratio=2), 14, 28, Tower(32, 2, 2, mlp_ratio=2), positions=8, vocabulary=64)


def our_model(sizes: Sizes, contrastive_batch: int) -> KneeRadDinoSigLIPModel:
    """This project's, on the CPU."""
    vision = Dinov2Config(
        hidden_size=sizes.vision.width,
        num_hidden_layers=sizes.vision.layers,
        num_attention_heads=sizes.vision.heads,
        mlp_ratio=sizes.vision.mlp_ratio,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        use_mask_token=False,
    )
    text = SiglipTextConfig(**text_values(sizes), bos_token_id=None)
    return KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig(vision, text, bias_init=-math.log(contrastive_batch - 1)))


def open_clip_config(sizes: Sizes) -> dict[str, Any]:
    """As in open_clip's model_configs. Its image tower has no layer scale and no norm before the blocks here: less work
    than ours has with layer scale."""
    vision, text = sizes.vision, sizes.text
    return {
        "embed_dim": text.width,
        "init_logit_bias": -10.0,
        "vision_cfg": {
            "image_size": sizes.image_size,
            "patch_size": sizes.patch,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": vision.mlp_ratio,
            "no_ln_pre": True,
        },
        "text_cfg": {
            "context_length": sizes.positions,
            "vocab_size": sizes.vocabulary,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_ratio,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }


def siglip_config(sizes: Sizes) -> SiglipConfig:
    """transformers' SigLIP, whose image tower pools by a head of its own."""
    vision = {
        "hidden_size": sizes.vision.width,
        "num_hidden_layers": sizes.vision.layers,
        "num_attention_heads": sizes.vision.heads,
        "intermediate_size": sizes.vision.width * sizes.vision.mlp_ratio,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch,
    }
    text = text_values(sizes) | {"projection_size": sizes.vision.width}
    return SiglipConfig(text_config=text, vision_config=vision)


def text_values(sizes: Sizes) -> dict[str, Any]:
    """transformers' names for the text tower's sizes."""
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.text.width,
        "intermediate_size": sizes.text.width * sizes.text.mlp_ratio,
        "num_hidden_layers": sizes.text.layers,
        "num_attention_heads": sizes.text.heads,
        "max_position_embeddings": sizes.positions,
        "pad_token_id": END,
        "eos_token_id": END,
    }


def parameter_count(model: Any) -> int:
    """All of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
