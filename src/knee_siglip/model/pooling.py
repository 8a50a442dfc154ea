"""The towers' last blocks, for the one token that is pooled.

Of the last block's outputs only one is used: the image's CLS token, the text's last position. The others would be
computed for nothing, so its queries, its output projection and its MLP see that one token; keys and values see all. The
result is the library's, up to rounding.
"""

import torch
from torch import Tensor, nn
from transformers import Dinov2Model, SiglipTextModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention, Dinov2Layer, eager_attention_forward
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer


def cls_token(tower: Dinov2Model, pixel_values: Tensor) -> Tensor:
    """(B, 3, S, S) normalised pixels to (B, W): the CLS token after the last norm."""
    hidden = tower.embeddings(pixel_values)
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
