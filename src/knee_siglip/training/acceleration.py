"""Options that make a step faster or smaller and change its numbers in the last digits at most."""

import importlib.util

import torch

from knee_siglip.core.errors import UsageError
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params.sections import TrainParams


def accelerate(model: KneeRadDinoSigLIPModel, params: TrainParams, device: torch.device) -> None:
    """Set the attention, gradient checkpointing, compilation and TF32 that the params ask for, in place.

    Raises:
        UsageError: `train.attention` needs a device, precision or package that is missing.
    """
    _check_attention(params, device)
    model.set_attn_implementation(params.attention)
    if params.gradient_checkpointing.vision:
        model.vision_model.activation_checkpointing_enable()
    if params.gradient_checkpointing.text:
        model.text_model.activation_checkpointing_enable()
        # transformers requests gradients of the token embeddings: needlessly, and through frozen blocks
        model.text_model.disable_input_require_grads()
    if device.type == "cuda":
        precision = "tf32" if params.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    if params.compile:
        # blocks, not towers: all blocks of a tower share one program, so it takes seconds. Weights keep their names.
        for block in (*model.vision.blocks, *model.text.blocks):
            block.compile()


def _check_attention(params: TrainParams, device: torch.device) -> None:
    if params.attention != "flash_attention_2":
        return
    if device.type != "cuda":
        raise UsageError("train.attention = flash_attention_2: needs an NVIDIA GPU; use sdpa")
    if params.mixed_precision == "none":
        raise UsageError(
            "train.attention = flash_attention_2: has no float32; set train.mixed_precision: auto, or use sdpa"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise UsageError(
            "train.attention = flash_attention_2: the package flash-attn is not installed; pip install flash-attn, "
            "or use sdpa, which brings flash kernels of its own"
        )
