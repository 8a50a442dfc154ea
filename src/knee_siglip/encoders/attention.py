"""Attention of the last block, which pools one token: one query, keys and values of all tokens."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(attention: Any, states: Tensor, pooled: slice, dropout: float, eager: Callable[..., Any]) -> Tensor:
    """States (B, T, W) to the attention output (B, 1, W) of the pooled token, by the model's attention implementation.

    attention: a transformers module with `q_proj`, `k_proj`, `v_proj` and `head_dim`. dropout: its probability.
    eager: the family's attention in plain steps.
    """
    run = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    gathered, _ = run(
        attention,
        _split_heads(attention.q_proj, states[:, pooled], attention.head_dim),
        _split_heads(attention.k_proj, states, attention.head_dim),
        _split_heads(attention.v_proj, states, attention.head_dim),
        None,
        dropout=dropout if attention.training else 0.0,
        scaling=attention.head_dim**-0.5,
    )
    found: Tensor = gathered.flatten(2)
    return found


def _split_heads(projection: nn.Module, tokens: Tensor, width: int) -> Tensor:
    """(B, T, W) to (B, H, T, W / H)."""
    return projection(tokens).unflatten(2, (-1, width)).transpose(1, 2)
