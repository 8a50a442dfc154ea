"""Model FLOPs of a training step, and what share of the device's peak they are.

MFU = model FLOPs per second / peak FLOPs per second (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Model
FLOPs are what the mathematics needs: a multiplication and an addition are two, only matrix products count, and what is
computed twice (gradient caching, gradient checkpointing) counts once.

A layer's products cost their forward FLOPs once more for the gradients of its inputs and once more for those of its
weights. Frozen layers have no gradients of weights; gradients of inputs are needed down to the lowest trained layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from knee_siglip.encoders.flops import Layer, count_layer
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel


def image_flops(model: KneeRadDinoSigLIPModel, image_size: int, cached_features: bool = False) -> int:
    """FLOPs, forward and backward, of training on one image of `image_size` pixels a side.

    cached_features: the vision tower's output is read from a file and only the projection is computed.
    """
    projection = [
        count_layer(linear, 2 * linear.in_features * linear.out_features)
        for linear in model.visual_projection.modules()
        if isinstance(linear, nn.Linear)
    ]
    return _training_flops(projection if cached_features else [*model.vision.layers(image_size), *projection])


def text_flops(model: KneeRadDinoSigLIPModel) -> int:
    """FLOPs, forward and backward, of training on one text, which is padded to the whole position table."""
    return _training_flops(model.text.layers())


def loss_flops(count: int, width: int) -> int:
    """FLOPs of the loss of `count` pairs of embeddings of `width`: the logits, and the gradients of both sides."""
    return 3 * 2 * count**2 * width


def step_flops(
    model: KneeRadDinoSigLIPModel, image_size: int, images: int, texts: int, cached_features: bool = False
) -> int:
    """FLOPs of one optimizer step, on all devices together.

    images: of the group. texts: that are encoded; equal ones are encoded once. Every image meets every image's text.
    """
    width = model.text.width
    encoding = images * image_flops(model, image_size, cached_features) + texts * text_flops(model)
    return encoding + loss_flops(images, width)


def _training_flops(layers: Iterable[Layer]) -> int:
    """Forward and backward of layers, lowest first."""
    flops, is_trained_below = 0, False
    for layer in layers:
        needs_input_gradients = is_trained_below or (layer.trained and layer.has_norm)
        flops += layer.weighted * (1 + layer.trained + needs_input_gradients)
        flops += layer.unweighted * (3 if needs_input_gradients else 1)
        is_trained_below = is_trained_below or layer.trained
    return flops


@dataclass(frozen=True)
class Peak:
    """Dense peak in TFLOP/s. `half`: bf16 and fp16 summed in float32; `tf32` None: no such tensor cores."""

    half: float
    tf32: float | None
    float32: float
    has_bf16: bool = True


PEAKS = {
    "B200": Peak(2250, 1125, 75),
    "H200": Peak(989.4, 494.7, 66.9),
    "H200 NVL": Peak(835.5, 417.5, 60),
    "GH200 480GB": Peak(989.4, 494.7, 66.9),
    "H100 80GB HBM3": Peak(989.4, 494.7, 66.9),
    "H100 NVL": Peak(835.5, 417.5, 60),
    "H100 PCIe": Peak(756, 378, 51.2),
    "A100-SXM4-40GB": Peak(312, 156, 19.5),
    "A100-SXM4-80GB": Peak(312, 156, 19.5),
    "A100-PCIE-40GB": Peak(312, 156, 19.5),
    "A100 80GB PCIe": Peak(312, 156, 19.5),
    "A40": Peak(149.7, 74.8, 37.4),
    "A30": Peak(165, 82, 10.3),
    "A10": Peak(125, 62.5, 31.2),
    "L40S": Peak(362.05, 183, 91.6),
    "L40": Peak(181.05, 90.5, 90.5),
    "L4": Peak(121, 60, 30.3),
    "RTX A6000": Peak(154.8, 77.4, 38.7),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 35.6, 35.6),
    "V100-SXM2-16GB": Peak(125, None, 15.7, has_bf16=False),
    "V100-SXM2-32GB": Peak(125, None, 15.7, has_bf16=False),
    "V100-PCIE-16GB": Peak(112, None, 14, has_bf16=False),
    "V100-PCIE-32GB": Peak(112, None, 14, has_bf16=False),
    "T4": Peak(65, None, 8.1, has_bf16=False),
}
"""By the name that the driver gives, without the brand. Source: NVIDIA's datasheets, and for GeForce the GA102 and Ada
whitepapers; where a datasheet gives the figure with sparsity, half of it."""

BRANDS = ("NVIDIA ", "Tesla ", "GeForce ")


def peak_flops(device: torch.device, dtype: torch.dtype | None, tf32: bool) -> float | None:
    """Peak FLOP/s of matrix products of `dtype` on one device; None where it is not known, so that no MFU is guessed.

    dtype: the autocast type; None is float32, on tensor cores where `tf32` is allowed and there are some for it.
    """
    if device.type != "cuda":
        return None
    return _peak(torch.cuda.get_device_name(device), dtype, tf32)


def _peak(name: str, dtype: torch.dtype | None, tf32: bool) -> float | None:
    """A part of a card (MIG), a laptop's or a market's own version has another name and another peak: not known."""
    for brand in BRANDS:
        name = name.removeprefix(brand)
    peak = PEAKS.get(name)
    if peak is None or (dtype == torch.bfloat16 and not peak.has_bf16):
        return None
    if dtype in (torch.bfloat16, torch.float16):
        return peak.half * 1e12
    if dtype in (None, torch.float32):
        return (peak.tf32 if tf32 and peak.tf32 else peak.float32) * 1e12
    return None


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation of `flops` done in `seconds`; peak: FLOP/s of all devices together."""
    return flops / seconds / peak
