"""The model: an image encoder and a text encoder, joined by a projection.

`logits = exp(logit_scale) * image_embeds @ text_embeds.T + logit_bias`, Zhai et al. 2023 (arXiv:2303.15343), section 3.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from knee_siglip.encoders.protocols import TextEncoder, VisionEncoder
from knee_siglip.encoders.registry import TEXT_ENCODERS, VISION_ENCODERS, Tower, encoders_of
from knee_siglip.pairs.batches import normalise


class KneeRadDinoSigLIPConfig(PretrainedConfig):
    """Configs of both encoders and of what joins them.

    `image_mean` and `image_std` (three channels, on the 0-1 grey scale) are the vision encoder's own.
    """

    model_type = "knee_rad_dino_siglip"
    sub_configs: ClassVar = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        projection: str = "linear",
        initial_temperature: float = 0.07,
        bias_init: float = -10.0,
        image_mean: tuple[float, ...] = (0.5307, 0.5307, 0.5307),
        image_std: tuple[float, ...] = (0.2583, 0.2583, 0.2583),
        **kwargs: Any,
    ) -> None:
        self.vision_config = _encoder_config("vision", vision_config)
        self.text_config = _encoder_config("text", text_config)
        self.projection = projection
        self.initial_temperature = initial_temperature
        self.bias_init = bias_init
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        super().__init__(**kwargs)


def _encoder_config(tower: Tower, values: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    if isinstance(values, PretrainedConfig):
        return values
    encoders = encoders_of(tower)
    model_type = (values or {}).get("model_type", next(iter(encoders)))
    return encoders[model_type].config_class(**(values or {}))


class KneeRadDinoSigLIPModel(PreTrainedModel):
    """Embeds radiographs and impressions into one space of the text encoder's width D."""

    config_class = KneeRadDinoSigLIPConfig
    base_model_prefix = "knee_rad_dino_siglip"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    image_mean: Tensor
    image_std: Tensor
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter

    def __init__(self, config: KneeRadDinoSigLIPConfig) -> None:
        super().__init__(config)
        self.vision_model = VISION_ENCODERS[config.vision_config.model_type].build(config.vision_config)
        self.text_model = TEXT_ENCODERS[config.text_config.model_type].build(config.text_config)
        width, text_width = self.vision.width, self.text.width
        self.visual_projection: nn.Module
        if config.projection == "linear":
            self.visual_projection = nn.Linear(width, text_width)
        else:
            self.visual_projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, text_width))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.bias_init)))
        self.register_buffer("image_mean", _channels(config.image_mean), persistent=False)
        self.register_buffer("image_std", _channels(config.image_std), persistent=False)
        self.post_init()

    @property
    def vision(self) -> VisionEncoder:
        """`vision_model` behind the interface of all families."""
        return VISION_ENCODERS[self.config.vision_config.model_type](self.vision_model)

    @property
    def text(self) -> TextEncoder:
        """`text_model` behind the interface of all families."""
        return TEXT_ENCODERS[self.config.text_config.model_type](self.text_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what joins the encoders, which initialise their own modules."""
        # transformers' own functions skip weights that were just loaded from a file
        if module is self:
            init.constant_(self.logit_scale, math.log(1 / self.config.initial_temperature))
            init.constant_(self.logit_bias, self.config.bias_init)
            init.copy_(self.image_mean, _channels(self.config.image_mean))
            init.copy_(self.image_std, _channels(self.config.image_std))
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)

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


def _full_precision(values: Tensor) -> Tensor:
    """Half precision to float32, since the loss needs it; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _channels(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
