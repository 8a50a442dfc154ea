"""Dinov2 as the image encoder: RAD-DINO, and the small one that ships with the project.

It computes only what is used; the results are the library's, up to rounding. Only the CLS token is pooled, so the last
block computes the query, output projection and MLP of that token alone. A grey image is three equal channels, so one
channel through the sum of the patch filters gives the same.
"""

import math
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2DropPath,
    Dinov2Layer,
    Dinov2SwiGLUFFN,
    eager_attention_forward,
)

from knee_siglip.encoders.attention import attend
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.protocols import VisionEncoder
from knee_siglip.encoders.stream import BlockParts, compute_block, stream_dtype


class Dinov2Encoder(VisionEncoder):
    """Wraps a `Dinov2Model`."""

    description = "Dinov2 model (such as RAD-DINO)"
    config_class = Dinov2Config
    model_class = Dinov2Model
    drop_path_class = Dinov2DropPath
    # pretraining's mask token would be a parameter without a gradient
    load_options: ClassVar[dict[str, Any]] = {"use_mask_token": False}
    model: Dinov2Model

    @staticmethod
    def parts(block: Dinov2Layer) -> BlockParts:
        """Its layers, whose norms come before attention and MLP."""
        mlp: Any = block.mlp
        is_gated = isinstance(mlp, Dinov2SwiGLUFFN)
        return BlockParts(
            attention=block.attention,
            norms=(block.norm1, block.norm2),
            output=block.attention.o_proj,
            mlp_in=mlp.up_proj if is_gated else mlp.fc1,
            mlp_out=mlp.down_proj if is_gated else mlp.fc2,
            gate=mlp.gate_proj if is_gated else None,
            activation=mlp.act_fn if is_gated else mlp.activation_fn,
            eager=eager_attention_forward,
            dropout=block.attention.attention_dropout,
            scales=(block.layer_scale1.lambda1, block.layer_scale2.lambda1),
            drop_path=block.drop_path,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""
        return self.model.encoder.layer

    def attention_dropout(self, module: nn.Module) -> float:
        """Probability with which `module` drops attention weights."""
        return float(module.attention_dropout) if isinstance(module, Dinov2Attention) else 0.0

    def pool(self, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The CLS token (B, W) after the last norm; see `VisionEncoder.pool`."""
        *blocks, last = self.blocks
        assert isinstance(last, Dinov2Layer)
        dtype = stream_dtype(self.model.embeddings.cls_token, self.parts(last))
        is_grey = pixel_values.shape[1] == 1
        hidden = self._embed_grey(pixel_values, mean, std, dtype) if is_grey else self.model.embeddings(pixel_values)
        hidden = hidden.to(dtype)
        for block in blocks:
            hidden = block(hidden)
        cls = self._pool_last(last, hidden)
        normalised: Tensor = self.model.layernorm(cls.to(self.model.layernorm.weight.dtype))
        return normalised[:, 0]

    def _pool_last(self, last: Dinov2Layer, hidden: Tensor) -> Tensor:
        """(B, T, W) to the CLS token (B, 1, W) after the last block."""
        if hidden.dtype == torch.bfloat16 and self.parts(last).is_plain:
            return compute_block(self.parts(last), hidden, slice(0, 1))
        cls = hidden[:, :1]
        attention, states = last.attention, last.norm1(hidden)
        attended = attend(attention, states, slice(0, 1), attention.attention_dropout, eager_attention_forward)
        cls = cls + last.drop_path(last.layer_scale1(attention.o_proj(attended)))
        return cls + last.drop_path(last.layer_scale2(last.mlp(last.norm2(cls))))

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

    def _embed_grey(self, grey: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 1, S, S) to tokens (B, 1 + P, W) of `dtype`."""
        embeddings = self.model.embeddings
        projection = embeddings.patch_embeddings.projection
        assert projection.bias is not None
        # each channel is a line of the first one: x_c = x_1 * s_1 / s_c + (m_1 - m_c) / s_c
        weight = (projection.weight * (std[:, :1] / std)).sum(dim=1, keepdim=True)
        bias = projection.bias + (projection.weight * ((mean[:, :1] - mean) / std)).sum(dim=(1, 2, 3))
        patches = F.conv2d(grey.to(weight.dtype), weight, bias, stride=projection.stride).flatten(2).transpose(1, 2)
        cls = embeddings.cls_token.to(dtype).expand(len(grey), -1, -1)
        tokens = torch.cat([cls, patches.to(dtype)], dim=1)
        return torch.as_tensor(embeddings.dropout(tokens + self._positions(grey.shape[2] // self.patch).to(dtype)))

    def _positions(self, side: int) -> Tensor:
        """The position table (1, 1 + P, W) for `side` x `side` patches, as the library interpolates it.

        Bicubic interpolation is linear in the table, so it is two products with a constant matrix. They cost less than
        the library's interpolation, whose gradients a GPU also adds up in an order that changes from run to run.
        """
        table = self.model.embeddings.position_embeddings
        cls, patches = table[:, :1], table[0, 1:]
        trained = math.isqrt(len(patches))
        if side == trained:
            return table
        matrix = _bicubic(trained, side, table.device).to(table.dtype)
        grid = patches.unflatten(0, (trained, trained))
        with torch.autocast(table.device.type, enabled=False):
            resized = torch.einsum("ih,jw,hwd->ijd", matrix, matrix, grid)
        return torch.cat([cls, resized.flatten(0, 1).unsqueeze(0)], dim=1)


@lru_cache(maxsize=8)
def _bicubic(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old) weights with which `new` points are interpolated between `old` ones."""
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(old, device=device)[None, None]
        return F.interpolate(identity, size=(new, old), mode="bicubic", align_corners=False)[0, 0]
