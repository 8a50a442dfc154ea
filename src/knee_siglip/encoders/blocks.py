"""Transformer blocks with their norms before attention and MLP, as both families of encoders have them.

Under a bf16 autocast the residual stream is bf16. Left to autocast it would stay float32, since class token and
positions are, and every product would cast its weights and its input: 840 of the 2,200 operators of a step of RAD-DINO
and SigLIP. Here the stream is cast once, before the first block; a block casts all its weights together, and queries,
keys and values are one product. Weights and their gradients stay float32, as do what comes before the blocks and what
follows them.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def gelu(values: Tensor) -> Tensor:
    """Exact GELU; compiled for a GPU, by a formula that costs less."""
    is_compiled = torch.compiler.is_compiling() and values.is_cuda and values.dtype == torch.bfloat16
    return _CompiledGelu.apply(values) if is_compiled else F.gelu(values)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""By their names in Hugging Face configs."""


class Attention(nn.Module):
    """Self-attention of several heads, without a mask.

    Args:
        names: that the family gives the layers of queries, keys and values, in its order, and the output's.
        bias: whether queries, keys and values have one.
        dropout: probability of dropping an attention weight; see `sample_dropout.py`.

    `implementation`: `sdpa` (torch's fused kernels), `flash_attention_2` (the package flash-attn), or `eager`.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    probability_dropout: nn.Module | None

    def __init__(self, width: int, heads: int, names: Sequence[str], bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {width}")
        self.head_dim, self.dropout, self.implementation = width // heads, dropout, "sdpa"
        *projections, self._output = names
        for name in projections:
            self.add_module(name, nn.Linear(width, width, bias=bias))
        self.add_module(self._output, nn.Linear(width, width))
        self.register_module("probability_dropout", None)

    @property
    def output(self) -> nn.Linear:
        """Projects what the heads gathered."""
        layer: nn.Linear = getattr(self, self._output)
        return layer

    def gather(
        self, query: Tensor, key: Tensor, value: Tensor, keep_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Projected (B, Q, W) and twice (B, T, W) to the heads' values (B, Q, W).

        With `keep_weights`, with dropout and `eager` in plain steps, and then also the weights (B, H, Q, T).
        """
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value))
        scale, weights = self.head_dim**-0.5, None
        if keep_weights or self.probability_dropout is not None or self.implementation == "eager":
            scores = query @ key.transpose(2, 3) * scale
            weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
            gathered = (weights if self.probability_dropout is None else self.probability_dropout(weights)) @ value
        elif self.implementation == "flash_attention_2":
            from flash_attn import flash_attn_func

            parts = (part.transpose(1, 2) for part in (query, key, value))
            return flash_attn_func(*parts, softmax_scale=scale).flatten(2), None
        else:
            gathered = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return gathered.transpose(1, 2).flatten(2), weights


class LayerScale(nn.Module):
    """A factor for each channel of a branch; Touvron et al. 2021 (arXiv:2103.17239), section 2."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(value * torch.ones(width))

    def forward(self, branch: Tensor) -> Tensor:
        """(..., W) to the same."""
        return branch * self.lambda1


class DropPath(nn.Module):
    """Where samples skip a branch with probability `drop_prob` in training; see `sample_dropout.py`, which does it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        """Nothing is dropped here."""
        assert not self.training, "use_sample_dropout before training"
        return branch


@dataclass(frozen=True)
class BlockParts:
    """The layers of a block.

    gate: of a gated MLP; the activation then applies to it. scales: of both branches. drop_path: drops branches of
    samples.
    """

    attention: Attention
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    mlp_in: nn.Linear
    mlp_out: nn.Linear
    activation: Callable[[Tensor], Tensor]
    gate: nn.Linear | None = None
    scales: tuple[LayerScale, LayerScale] | None = None
    drop_path: Callable[[Tensor], Tensor] | None = None

    @property
    def layers(self) -> dict[str, list[Any]]:
        """Linear layers by name; those of one name are computed as one product."""
        attention = self.attention
        found: dict[str, list[Any]] = {
            "projections": [attention.q_proj, attention.k_proj, attention.v_proj],
            "output": [attention.output],
            "mlp_in": [self.mlp_in],
            "mlp_out": [self.mlp_out],
        }
        return found if self.gate is None else found | {"gate": [self.gate]}

    @property
    def is_plain(self) -> bool:
        """Whether every layer is one that `_compute_cast` knows, in float32: an adapter around a layer is not."""
        layers = [*self.norms, *(layer for together in self.layers.values() for layer in together)]
        return all(type(layer) in (nn.Linear, nn.LayerNorm) and layer.weight.dtype == torch.float32 for layer in layers)

    def casts(self, hidden: Tensor) -> bool:
        """Whether the block casts its weights to the type of `hidden` (`_compute_cast`)."""
        return hidden.dtype == torch.bfloat16 and self.is_plain


def stream_dtype(hidden: Tensor, parts: BlockParts) -> torch.dtype:
    """Type of the residual stream: bf16 under a bf16 autocast, else that of the embedded tokens.

    Under fp16, whose largest number is 65,504, and around adapters the stream stays as autocast has it, and in
    inference mode too, whose embeddings would else be too far from those of float32 (docs/decisions.md).
    """
    device = hidden.device.type
    is_bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if is_bf16 and parts.is_plain and not torch.is_inference_mode_enabled() else hidden.dtype


class Block(nn.Module):
    """A block; the family names its layers."""

    gradient_checkpointing = False

    @property
    @abstractmethod
    def parts(self) -> BlockParts:
        """Its layers."""

    @property
    def is_recomputed(self) -> bool:
        """Whether the backward pass computes it again, from its input alone."""
        return self.gradient_checkpointing and self.training

    def forward(
        self,
        hidden: Tensor,
        states: Tensor | None = None,
        following: nn.LayerNorm | None = None,
        pooled: slice | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, W) to the same, or with `pooled` to that token (B, 1, W): its query, output projection and MLP alone.

        In the type of `hidden`. `states`: its first norm's output, where that is known. `following`: the next block's
        first norm, whose output is returned too: compiled with the addition before it, it costs one pass over the
        memory less. With gradient checkpointing the block is recomputed in the backward pass, where that is worth it
        (not for one token), from `hidden` alone.
        """
        if self.is_recomputed and pooled is None:
            # dropout draws by key, so no generator is rewound, for which the host would wait
            found = checkpoint(self.compute, hidden, use_reentrant=False, preserve_rng_state=False)
            return found[0], None
        hidden, states, _ = self.compute(hidden, states, following, pooled)
        return hidden, states

    def compute(
        self,
        hidden: Tensor,
        states: Tensor | None = None,
        following: nn.LayerNorm | None = None,
        pooled: slice | None = None,
        keep_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `forward`, and the weights if `keep_weights`: see `Attention.gather`."""
        parts = self.parts
        if parts.casts(hidden):
            with torch.autocast(hidden.device.type, enabled=False):
                return _compute_cast(parts, hidden, states, following, pooled, keep_weights)
        attention, scales = parts.attention, parts.scales or (nn.Identity(), nn.Identity())
        drop_path = parts.drop_path or nn.Identity()
        states = parts.norms[0](hidden) if states is None else states
        query = attention.q_proj(states if pooled is None else states[:, pooled])
        gathered, weights = attention.gather(query, attention.k_proj(states), attention.v_proj(states), keep_weights)
        hidden = hidden if pooled is None else hidden[:, pooled]
        hidden = hidden + drop_path(scales[0](attention.output(gathered)))
        normalised = parts.norms[1](hidden)
        if parts.gate is None:
            inner = parts.activation(parts.mlp_in(normalised))
        else:
            inner = parts.activation(parts.gate(normalised)) * parts.mlp_in(normalised)
        hidden = hidden + drop_path(scales[1](parts.mlp_out(inner)))
        return hidden, None if following is None else following(hidden), weights


def through_blocks(blocks: Sequence[Block], hidden: Tensor, pooled: slice | None = None) -> Tensor:
    """Embedded tokens (B, T, W) to the last block's output, or with `pooled` to that token's (B, 1, W)."""
    parts, states = blocks[0].parts, None
    if parts.casts(hidden) and not blocks[0].is_recomputed:  # by itself, lest the first block be a program of its own
        norm = parts.norms[0]
        states = _normalise(norm, hidden, norm.weight.to(hidden.dtype), norm.bias.to(hidden.dtype))
    for block, following in pairwise(blocks):
        hidden, states = block(hidden, states, following.parts.norms[0])
    return torch.as_tensor(blocks[-1](hidden, states, pooled=pooled)[0])


def _normalise(norm: nn.LayerNorm, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over rows of one long list: the compiler pads the figures of lists of more than 1,024 rows each, as the tokens of
    448 px are, and then reads every row twice."""
    with torch.autocast(hidden.device.type, enabled=False):
        rows = F.layer_norm(hidden.flatten(0, 1), norm.normalized_shape, weight, bias, norm.eps)
    return rows.view_as(hidden)


def _compute_cast(
    parts: BlockParts,
    hidden: Tensor,
    states: Tensor | None,
    following: nn.LayerNorm | None,
    pooled: slice | None,
    keep_weights: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`Block.compute` with float32 weights in the type of `hidden`."""
    norms = {"norm_0": parts.norms[0] if states is None else None, "norm_1": parts.norms[1], "following": following}
    cast = _cast_weights(parts, {name: norm for name, norm in norms.items() if norm is not None}, hidden.dtype)

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, *cast[name])

    def norm(name: str, values: Tensor) -> Tensor:
        layer = norms[name]
        assert layer is not None
        return _normalise(layer, values, *cast[name])

    def add(values: Tensor, branch: Tensor) -> Tensor:
        return values + (branch if parts.drop_path is None else parts.drop_path(branch))

    states = norm("norm_0", hidden) if states is None else states
    query, key, value = _project(states, cast["projections"], pooled)
    gathered, weights = parts.attention.gather(query, key, value, keep_weights)
    hidden = add(hidden if pooled is None else hidden[:, pooled], linear("output", gathered))
    normalised = norm("norm_1", hidden)
    inner = linear("mlp_in", normalised)
    gated = parts.activation(inner if parts.gate is None else linear("gate", normalised))
    hidden = add(hidden, linear("mlp_out", gated if parts.gate is None else gated * inner))
    return hidden, None if following is None else norm("following", hidden), weights


def _project(states: Tensor, joined: Sequence[Any], pooled: slice | None) -> Sequence[Tensor]:
    """(B, T, W) to queries (of `pooled` alone), keys and values, by their joined weights (3W, W) and biases."""
    weight, bias = joined
    if pooled is None:
        return F.linear(states, weight, bias).chunk(3, dim=-1)
    width = len(weight) // 3
    query = F.linear(states[:, pooled], weight[:width], None if bias is None else bias[:width])
    return (query, *F.linear(states, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1))


def _cast_weights(parts: BlockParts, norms: dict[str, nn.LayerNorm], dtype: torch.dtype) -> dict[str, list[Any]]:
    """Weight and bias in another type, by name of `BlockParts.layers` and of the norms.

    A branch's scale multiplies the weight and bias that the branch ends with, not its values: a thousandth of the
    products, and its gradient needs no values of the branch.
    """
    scales = dict(zip(("output", "mlp_out"), parts.scales or (), strict=False))
    groups: list[list[Tensor]] = []
    slots: list[tuple[str, bool]] = []
    layers_by_name: dict[str, list[Any]] = parts.layers | {name: [norm] for name, norm in norms.items()}
    for name, layers in layers_by_name.items():
        for kind in ("weight", "bias"):
            tensors = [getattr(layer, kind) for layer in layers]
            slots.append((name, tensors[0] is not None))
            if tensors[0] is None:
                continue
            if name in scales:
                factor = scales[name].lambda1
                tensors = [factor.unsqueeze(1) * tensors[0] if kind == "weight" else factor * tensors[0]]
            groups.append(tensors)
    sizes = [[len(tensor) for tensor in group] for group in groups]
    cast = iter(_CastTogether.apply(dtype, sizes, *[tensor for group in groups for tensor in group]))
    found: dict[str, list[Any]] = {}
    for name, exists in slots:
        found.setdefault(name, []).append(next(cast) if exists else None)
    return found


class _CompiledGelu(torch.autograd.Function):
    """GELU for the compiler, whose own erf takes longer than the memory does.

    erf by Abramowitz and Stegun 1964, 7.1.26: off by at most 1.5e-7, a ten-thousandth of a bf16 digit. Its exponential
    is that of the normal density, so the gradient needs no second one.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        x = values.float()
        return (x * normal_distribution(x)[0]).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        x = values.float()
        below, density = normal_distribution(x)
        return (grad * (below + x * density)).to(values.dtype)


def normal_distribution(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the standard normal distribution, the probability below x and the density at x."""
    exponential = torch.exp(-0.5 * x.square())
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * x.abs())
    polynomial = torch.full_like(x, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = coefficient + t * polynomial
    tail = 0.5 * t * polynomial * exponential
    return torch.where(x < 0, tail, 1 - tail), exponential / math.sqrt(2 * math.pi)


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
    """Tensors of these shapes in one piece of memory: a single allocation.

    The compiler would copy that piece for each tensor that is written, so it gets them one by one.
    """
    if torch.compiler.is_compiling():
        return [like.new_empty(list(shape), dtype=dtype) for shape in shapes]
    counts = [math.prod(shape) for shape in shapes]
    memory = like.new_empty(sum(counts), dtype=dtype)
    return [part.view(*shape) for part, shape in zip(memory.split(counts), shapes, strict=True)]
