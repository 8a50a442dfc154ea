"""Both towers without what nobody uses; the results are the library's, up to rounding.

Of the last block's outputs only one is pooled: the image's CLS token, the text's last position. Its queries, its
output projection and its MLP see that one token; keys and values see all. And a grey image is three equal channels: one
channel through the sum of the patch filters gives the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Model, SiglipTextModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2Embeddings,
    Dinov2Layer,
    eager_attention_forward,
)
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer


def cls_token(tower: Dinov2Model, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The CLS token (B, W) after the last norm.

    pixel_values: (B, 3, S, S), normalised; or grey (B, 1, S, S), normalised with the first channel's mean and std.
    mean, std: (1, 3, 1, 1) of the three channels.
    """
    is_grey = pixel_values.shape[1] == 1
    hidden = _embed_grey(tower.embeddings, pixel_values, mean, std) if is_grey else tower.embeddings(pixel_values)
    *blocks, last = tower.encoder.layer
    for block in blocks:
        hidden = block(hidden)
    assert isinstance(last, Dinov2Layer)
    cls = hidden[:, :1]
    attended = _attend(last.attention, last.norm1(hidden), slice(0, 1), last.attention.attention_dropout)
    cls = cls + last.drop_path(last.layer_scale1(last.attention.o_proj(attended)))
    cls = cls + last.drop_path(last.layer_scale2(last.mlp(last.norm2(cls))))
    normalised: Tensor = tower.layernorm(cls)
    return normalised[:, 0]


def last_position(tower: SiglipTextModel, input_ids: Tensor) -> Tensor:
    """(B, L) token ids to (B, D): the last position after the last norm and the head."""
    hidden = tower.embeddings(input_ids=input_ids)
    *blocks, last = tower.encoder.layers
    for block in blocks:
        hidden = block(hidden, None)
    assert isinstance(last, SiglipEncoderLayer)
    pooled = hidden[:, -1:]
    attended = _attend(last.self_attn, last.layer_norm1(hidden), slice(-1, None), last.self_attn.dropout)
    pooled = pooled + last.self_attn.out_proj(attended)
    pooled = pooled + last.mlp(last.layer_norm2(pooled))
    output: Tensor = tower.head(tower.final_layer_norm(pooled)[:, 0])
    return output


def _embed_grey(embeddings: Dinov2Embeddings, grey: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 1, S, S) to tokens (B, 1 + patches, W)."""
    projection = embeddings.patch_embeddings.projection
    assert projection.bias is not None
    # each channel is a line of the first one: x_c = x_1 * s_1 / s_c + (m_1 - m_c) / s_c
    weight = (projection.weight * (std[:, :1] / std)).sum(dim=1, keepdim=True)
    bias = projection.bias + (projection.weight * ((mean[:, :1] - mean) / std)).sum(dim=(1, 2, 3))
    patches = F.conv2d(grey.to(weight.dtype), weight, bias, stride=projection.stride).flatten(2).transpose(1, 2)
    tokens = torch.cat([embeddings.cls_token.expand(len(grey), -1, -1), patches], dim=1)
    positioned: Tensor = tokens + embeddings.interpolate_pos_encoding(tokens, *grey.shape[2:])
    return torch.as_tensor(embeddings.dropout(positioned))


def _attend(attention: Dinov2Attention | SiglipAttention, states: Tensor, pooled: slice, dropout: float) -> Tensor:
    """States (B, T, W) to what the pooled tokens gather from them, (B, 1, W), by whichever attention is set."""
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    heads = (
        _heads(projection, tokens, attention.head_dim)
        for projection, tokens in (
            (attention.q_proj, states[:, pooled]),
            (attention.k_proj, states),
            (attention.v_proj, states),
        )
    )
    scaling = attention.head_dim**-0.5
    gathered, _ = attend(attention, *heads, None, dropout=dropout if attention.training else 0.0, scaling=scaling)
    return torch.as_tensor(gathered).flatten(2)


def _heads(projection: nn.Module, tokens: Tensor, width: int) -> Tensor:
    """(B, T, W) to (B, H, T, W / H)."""
    return projection(tokens).unflatten(2, (-1, width)).transpose(1, 2)
