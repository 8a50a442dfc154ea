"""Transformer blocks with a bf16 residual stream.

Under autocast the stream stays float32, since class token and positions are, and every product casts its weights and
its input: 840 of the 2,200 operators of a step of RAD-DINO and SigLIP. Here the stream is cast once, before the first
block; a block casts all its weights together, and queries, keys and values are one product. Weights and their gradients
stay float32, as do what comes before the blocks and what follows them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True)
class BlockParts:
    """The layers of a block that has its norms before attention and MLP.

    eager: the family's attention in plain steps. dropout: probability of dropping attention weights. gate: of a gated
    MLP; the activation then applies to it. scales: factors (W,) of both branches. drop_path: drops branches of samples.
    """

    attention: Any
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    output: nn.Linear
    mlp_in: nn.Linear
    mlp_out: nn.Linear
    activation: Callable[[Tensor], Tensor]
    eager: Callable[..., Any]
    dropout: float = 0.0
    gate: nn.Linear | None = None
    scales: tuple[Tensor, Tensor] | None = None
    drop_path: Callable[[Tensor], Tensor] | None = None

    @property
    def layers(self) -> dict[str, list[Any]]:
        """Layers by name; those of one name are computed as one product."""
        attention = self.attention
        found = {
            "norm_0": [self.norms[0]],
            "projections": [attention.q_proj, attention.k_proj, attention.v_proj],
            "output": [self.output],
            "norm_1": [self.norms[1]],
            "mlp_in": [self.mlp_in],
            "mlp_out": [self.mlp_out],
        }
        return found if self.gate is None else found | {"gate": [self.gate]}

    @property
    def is_plain(self) -> bool:
        """Whether every layer is one that `compute_block` knows, in float32: an adapter around a layer is not."""
        layers = [layer for together in self.layers.values() for layer in together]
        return all(type(layer) in (nn.Linear, nn.LayerNorm) and layer.weight.dtype == torch.float32 for layer in layers)


def stream_dtype(hidden: Tensor, parts: BlockParts) -> torch.dtype:
    """Type of the residual stream: bf16 under a bf16 autocast, else that of the embedded tokens.

    Under fp16, whose largest number is 65,504, and around adapters the stream stays as autocast has it.
    """
    device = hidden.device.type
    is_bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if is_bf16 and parts.is_plain else hidden.dtype


def follow_stream(block: nn.Module, parts_of: Callable[[Any], BlockParts | None]) -> None:
    """Let a block compute as `compute_block` does where its input is bf16 and its weights are not, in place."""

    def forward(block: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = parts_of(block)
        if hidden_states.dtype != torch.bfloat16 or parts is None or not parts.is_plain:
            return type(block).forward(block, hidden_states, *args, **kwargs)
        if block.gradient_checkpointing and block.training:
            return block._gradient_checkpointing_func(partial(compute_block, parts), hidden_states)
        return compute_block(parts, hidden_states)

    block.forward = MethodType(forward, block)  # bound, so that a copy of the model calls its own blocks


def compute_block(parts: BlockParts, hidden: Tensor, pooled: slice | None = None) -> Tensor:
    """(B, T, W) through a block, in the type of `hidden`; with `pooled`, that token alone: (B, 1, W)."""
    weights = _cast_weights(parts, hidden.dtype)

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, *weights[name])

    def norm(number: int, values: Tensor) -> Tensor:
        layer = parts.norms[number]
        weight, bias = weights[f"norm_{number}"]
        return F.layer_norm(values, layer.normalized_shape, weight, bias, layer.eps)

    def add(number: int, values: Tensor, branch: Tensor) -> Tensor:
        if "scales" in weights:
            branch = branch * weights["scales"][number]
        return values + (branch if parts.drop_path is None else parts.drop_path(branch))

    with torch.autocast(hidden.device.type, enabled=False):
        attended = _attend(parts, norm(0, hidden), weights["projections"], pooled)
        hidden = add(0, hidden if pooled is None else hidden[:, pooled], linear("output", attended))
        normalised = norm(1, hidden)
        inner = linear("mlp_in", normalised)
        gated = parts.activation(inner if parts.gate is None else linear("gate", normalised))
        return add(1, hidden, linear("mlp_out", gated if parts.gate is None else gated * inner))


def _attend(parts: BlockParts, states: Tensor, projections: list[Any], pooled: slice | None) -> Tensor:
    """Normalised states (B, T, W) to the attention's (B, T or 1, W), before its output projection."""
    attention = parts.attention
    weight, bias = projections
    if pooled is None:
        query, key, value = F.linear(states, weight, bias).chunk(3, dim=-1)
    else:
        width = len(weight) // 3
        query = F.linear(states[:, pooled], weight[:width], None if bias is None else bias[:width])
        key, value = F.linear(states, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    heads = [part.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in (query, key, value)]
    run = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, parts.eager)
    dropout = parts.dropout if attention.training else 0.0
    gathered, _ = run(attention, *heads, None, dropout=dropout, scaling=attention.head_dim**-0.5, is_causal=False)
    found: Tensor = gathered.flatten(2)
    return found


def _cast_weights(parts: BlockParts, dtype: torch.dtype) -> dict[str, list[Any]]:
    """Weight and bias by name of `BlockParts.layers`, and both `scales`, in another type."""
    groups: list[list[Tensor]] = []
    slots: list[tuple[str, bool]] = []
    for name, layers in parts.layers.items():
        for kind in ("weight", "bias"):
            tensors = [getattr(layer, kind) for layer in layers]
            slots.append((name, tensors[0] is not None))
            groups += [tensors] if tensors[0] is not None else []
    for scale in parts.scales or ():
        slots.append(("scales", True))
        groups.append([scale])
    sizes = [[len(tensor) for tensor in group] for group in groups]
    cast = iter(_CastTogether.apply(dtype, sizes, *[tensor for group in groups for tensor in group]))
    found: dict[str, list[Any]] = {}
    for name, exists in slots:
        found.setdefault(name, []).append(next(cast) if exists else None)
    return found


class _CastTogether(torch.autograd.Function):
    """Weights to another type, joined by groups along their rows, and gradients back: one operator for all of them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: list[list[int]], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.sizes = weights[0].dtype, sizes
        ends = list(accumulate(len(group) for group in sizes))
        groups = [weights[end - len(group) : end] for group, end in zip(sizes, ends, strict=True)]
        shapes = [(sum(len(tensor) for tensor in group), *group[0].shape[1:]) for group in groups]
        joined = _empty(shapes, weights[0], dtype)
        targets = [part for whole, group in zip(joined, sizes, strict=True) for part in whole.split(group)]
        torch._foreach_copy_(targets, list(weights))
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parts = [part for grad, sizes in zip(grads, ctx.sizes, strict=True) for part in grad.split(sizes)]
        targets = _empty([part.shape for part in parts], parts[0], ctx.dtype)
        torch._foreach_copy_(targets, parts)
        return None, None, *targets


def _empty(shapes: Sequence[Sequence[int]], like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of these shapes in one piece of memory: a single allocation."""
    counts = [math.prod(shape) for shape in shapes]
    memory = like.new_empty(sum(counts), dtype=dtype)
    return [part.view(*shape) for part, shape in zip(memory.split(counts), shapes, strict=True)]
