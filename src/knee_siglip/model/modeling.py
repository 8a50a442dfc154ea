"""The model: an image encoder and a text encoder, joined by a projection.

`logits = exp(logit_scale) * image_embeds @ text_embeds.T + logit_bias`, Zhai et al. 2023 (arXiv:2303.15343), section 3.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knee_siglip.encoders.protocols import TextEncoder, VisionEncoder
from knee_siglip.encoders.registry import TEXT_ENCODERS, VISION_ENCODERS, Tower, encoders_of
from knee_siglip.encoders.weights import NoDraws
from knee_siglip.pairs.batches import normalise


@dataclass
class KneeRadDinoSigLIPConfig:
    """Configs of both encoders, given as such or as their `to_dict`, and of what joins them.

    `image_mean` and `image_std` (three channels, on the 0-1 grey scale) are the vision encoder's own.
    """

    vision_config: Any = field(default_factory=dict)
    text_config: Any = field(default_factory=dict)
    projection: str = "linear"
    initial_temperature: float = 0.07
    bias_init: float = -10.0
    image_mean: Any = (0.5307, 0.5307, 0.5307)
    image_std: Any = (0.2583, 0.2583, 0.2583)

    def __post_init__(self) -> None:
        self.vision_config = _encoder_config("vision", self.vision_config)
        self.text_config = _encoder_config("text", self.text_config)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From its `to_dict`; what else it holds is passed over."""
        return cls(**{own.name: values[own.name] for own in fields(cls) if own.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Plain containers of all of it."""
        towers = {"vision_config": self.vision_config.to_dict(), "text_config": self.text_config.to_dict()}
        return {own.name: getattr(self, own.name) for own in fields(self)} | towers


def _encoder_config(tower: Tower, config: Any) -> Any:
    values = config if isinstance(config, dict) else config.to_dict()
    encoders = encoders_of(tower)
    return encoders[values.get("model_type", next(iter(encoders)))].config_of(values)


class KneeRadDinoSigLIPModel(nn.Module):
    """Embeds radiographs and impressions into one space of the text encoder's width D.

    is_empty: its weights will be assigned, so none is drawn.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: KneeRadDinoSigLIPConfig, is_empty: bool = False) -> None:
        super().__init__()
        self.config = config
        vision = VISION_ENCODERS[config.vision_config.model_type]
        text = TEXT_ENCODERS[config.text_config.model_type]
        self.vision_model = (vision.build_empty if is_empty else vision.build)(config.vision_config)
        self.text_model = (text.build_empty if is_empty else text.build)(config.text_config)
        with NoDraws() if is_empty else nullcontext():
            self.visual_projection = _projection(config.projection, self.vision.width, self.text.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.bias_init)))
        self.register_buffer("image_mean", _channels(config.image_mean), persistent=False)
        self.register_buffer("image_std", _channels(config.image_std), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return self.logit_scale.dtype

    def set_attn_implementation(self, name: str) -> None:
        """`sdpa`, `flash_attention_2` or `eager`, of both towers."""
        self.vision_model.set_attn_implementation(name)
        self.text_model.set_attn_implementation(name)

    def activation_checkpointing_enable(self) -> None:
        """Recompute both towers' blocks in the backward pass instead of keeping their activations."""
        self.vision_model.activation_checkpointing_enable()
        self.text_model.activation_checkpointing_enable()

    @property
    def vision(self) -> VisionEncoder:
        """`vision_model` behind the interface of all families."""
        return VISION_ENCODERS[self.config.vision_config.model_type](self.vision_model)

    @property
    def text(self) -> TextEncoder:
        """`text_model` behind the interface of all families."""
        return TEXT_ENCODERS[self.config.text_config.model_type](self.text_model)

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """Grey (B, S, S), 0-255 of any dtype, to (B, 3, S, S) float32 with the vision encoder's mean and std."""
        return normalise(pixels, self.image_mean, self.image_std)

    def normalise_grey(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Grey (B, S, S), 0-255 of any dtype, to (B, 1, S, S): a third of the memory, the same features."""
        return normalise(pixels, self.image_mean[:, :1], self.image_std[:, :1], out)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), or (B, 1, S, S) of `normalise_grey`, to (B, D) L2-normalised embeddings."""
        return self.project_image_features(self.vision_features(pixel_values))

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels, as `get_image_features` takes them, to (B, W) CLS tokens after the last norm."""
        return self.vision.pool(pixel_values, self.image_mean, self.image_std)

    def project_image_features(self, features: Tensor) -> Tensor:
        """(B, W) CLS tokens to (B, D) L2-normalised float32 embeddings, under any autocast."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = next(self.visual_projection.parameters()).dtype
            return F.normalize(_full_precision(self.visual_projection(features.to(dtype))), dim=-1)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """(B, L) token ids, padded to the whole position table, to (B, D) L2-normalised float32 embeddings."""
        return F.normalize(_full_precision(self.text.pool(input_ids)), dim=-1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """(B, 3, S, S) pixels and (T, L) token ids to (B, T) logits."""
        image_embeds = self.get_image_features(pixel_values)
        text_embeds = self.get_text_features(input_ids)
        return self.logit_scale.exp() * image_embeds @ text_embeds.T + self.logit_bias

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part, in all, and those that are trained."""
        parts = {"vision": self.vision_model, "text": self.text_model, "projection": self.visual_projection}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        total = sum(p.numel() for p in self.parameters())
        return counts | {"total": total, "trainable": sum(p.numel() for p in self.parameters() if p.requires_grad)}


def _projection(kind: str, width: int, text_width: int) -> nn.Sequential | nn.Linear:
    """`linear` or `mlp`: (..., width) to (..., text_width)."""
    if kind == "linear":
        projection: nn.Sequential | nn.Linear = nn.Linear(width, text_width)
    else:
        projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, text_width))
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    return projection


def _full_precision(values: Tensor) -> Tensor:
    """Half precision to float32, since the loss needs it; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
