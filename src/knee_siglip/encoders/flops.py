"""FLOPs of transformers: a multiplication and an addition are two, and only matrix products count."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

ADAPTER_WEIGHT = ".lora_"
"""Part of the names of an adapter's weights, and of no others (`adapters.py`)."""


@dataclass(frozen=True)
class Layer:
    """FLOPs forward of one layer, for one image or text.

    `weighted`: products with weights. `unweighted`: products of two activations, of which both take a gradient.
    `trained`: some of the layer's own weights take a gradient. `adapted`: its adapters do; their own products are not
    counted, as their rank is far below the width. `has_norm`: a norm with weights comes first, so that the products'
    inputs take a gradient if the layer is trained.
    """

    weighted: int
    unweighted: int
    trained: bool
    has_norm: bool
    adapted: bool = False


def count_layer(module: nn.Module, weighted: int = 0, has_norm: bool = False) -> Layer:
    """A layer without products of two activations."""
    return Layer(weighted, 0, is_trained(module), has_norm)


def count_blocks(blocks: nn.ModuleList, tokens: int, width: int, hidden: int, matrices: int = 2) -> list[Layer]:
    """Queries, keys, values and output of D x D each, an MLP of `matrices` of D x H, and two products of T x T x D.

    The last block pools one token, so only its keys and values are computed for all tokens.
    """
    layers = []
    for block in blocks:
        queries = 1 if block is blocks[-1] else tokens
        weights = 2 * width**2 * tokens + (2 * width**2 + matrices * width * hidden) * queries
        trained, adapted = is_trained(block), is_adapted(block)
        layers.append(Layer(2 * weights, 2 * 2 * queries * tokens * width, trained, has_norm=True, adapted=adapted))
    return layers


def training_flops(layers: Iterable[Layer]) -> int:
    """FLOPs forward and backward of layers, the lowest first.

    A layer's products cost their forward FLOPs once more for the gradients of its inputs and once more for those of its
    weights. Frozen layers have no gradients of weights; those of inputs are needed down to the lowest trained layer.
    """
    flops, is_trained_below = 0, False
    for layer in layers:
        needs_input_gradients = is_trained_below or layer.adapted or (layer.trained and layer.has_norm)
        flops += layer.weighted * (1 + layer.trained + needs_input_gradients)
        flops += layer.unweighted * (3 if needs_input_gradients else 1)
        is_trained_below = is_trained_below or layer.trained or layer.adapted
    return flops


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter, adapters left out, takes a gradient."""
    return any(parameter.requires_grad for name, parameter in module.named_parameters() if ADAPTER_WEIGHT not in name)


def is_adapted(module: nn.Module) -> bool:
    """Whether it holds adapters."""
    return any(ADAPTER_WEIGHT in name for name, _ in module.named_parameters())
