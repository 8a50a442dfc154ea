"""Dinov2 as the image encoder: RAD-DINO, and the small one that ships with the project.

It computes only what is used; the results are the library's, up to rounding. Only the CLS token is pooled, so the last
block computes the query, output projection and MLP of that token alone. A grey image is three equal channels, so one
channel through the sum of the patch filters gives the same.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2DropPath,
    Dinov2Layer,
    eager_attention_forward,
)

from knee_siglip.encoders.attention import attend
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.protocols import VisionEncoder


class Dinov2Encoder(VisionEncoder):
    """Wraps a `Dinov2Model`."""

    description = "Dinov2 model (such as RAD-DINO)"
    config_class = Dinov2Config
    model_class = Dinov2Model
    drop_path_class = Dinov2DropPath
    # pretraining's mask token would be a parameter without a gradient
    load_options: ClassVar[dict[str, Any]] = {"use_mask_token": False}
    model: Dinov2Model

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""
        return self.model.encoder.layer

    def attention_dropout(self, module: nn.Module) -> float:
        """Probability with which `module` drops attention weights."""
        return float(module.attention_dropout) if isinstance(module, Dinov2Attention) else 0.0

    def pool(self, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The CLS token (B, W) after the last norm; see `VisionEncoder.pool`."""
        is_grey = pixel_values.shape[1] == 1
        hidden = self._embed_grey(pixel_values, mean, std) if is_grey else self.model.embeddings(pixel_values)
        *blocks, last = self.blocks
        for block in blocks:
            hidden = block(hidden)
        assert isinstance(last, Dinov2Layer)
        cls = hidden[:, :1]
        attention, states = last.attention, last.norm1(hidden)
        attended = attend(attention, states, slice(0, 1), attention.attention_dropout, eager_attention_forward)
        cls = cls + last.drop_path(last.layer_scale1(attention.o_proj(attended)))
        cls = cls + last.drop_path(last.layer_scale2(last.mlp(last.norm2(cls))))
        normalised: Tensor = self.model.layernorm(cls)
        return normalised[:, 0]

    def layers(self, image_size: int) -> list[Layer]:
        """FLOPs of `pool` for one grey image, the lowest layer first."""
        config = self.model.config
        patches = (image_size // self.patch) ** 2
        hidden = int(self.width * config.mlp_ratio)
        if config.use_swiglu_ffn:
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as the library rounds it
        embedding = count_layer(self.embeddings, 2 * patches * self.patch**2 * self.width)
        matrices = 3 if config.use_swiglu_ffn else 2
        blocks = count_blocks(self.blocks, patches + 1, self.width, hidden, matrices)
        return [embedding, *blocks, count_layer(self.model.layernorm, has_norm=True)]

    def _embed_grey(self, grey: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(B, 1, S, S) to tokens (B, 1 + P, W)."""
        embeddings = self.model.embeddings
        projection = embeddings.patch_embeddings.projection
        assert projection.bias is not None
        # each channel is a line of the first one: x_c = x_1 * s_1 / s_c + (m_1 - m_c) / s_c
        weight = (projection.weight * (std[:, :1] / std)).sum(dim=1, keepdim=True)
        bias = projection.bias + (projection.weight * ((mean[:, :1] - mean) / std)).sum(dim=(1, 2, 3))
        patches = F.conv2d(grey.to(weight.dtype), weight, bias, stride=projection.stride).flatten(2).transpose(1, 2)
        tokens = torch.cat([embeddings.cls_token.expand(len(grey), -1, -1), patches], dim=1)
        positioned: Tensor = tokens + embeddings.interpolate_pos_encoding(tokens, *grey.shape[2:])
        return torch.as_tensor(embeddings.dropout(positioned))
