"""Options that make a step faster or smaller and change its numbers in the last digits at most."""

import importlib.util

import torch

from knee_siglip.core.errors import UsageError
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params.sections import TrainParams

PROGRAMS = 64
"""At most so many compiled programs of one function; torch's own limit of 8 falls back to plain steps in silence."""


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
    if device.type == "cuda":
        # not the newer `fp32_precision`, which torch.compile of 2.9 and 2.10 refuses (pytorch#166387)
        torch.set_float32_matmul_precision("high" if params.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = params.tf32
    if params.compile is True or (params.compile == "auto" and device.type == "cuda"):
        _compile_blocks(model, is_asked_for=params.compile is True)


def _compile_blocks(model: KneeRadDinoSigLIPModel, is_asked_for: bool) -> None:
    """Compile blocks, not towers: the blocks of a tower share two programs, so it takes seconds. Weights keep names.

    The second program is that of the last block, which pools one token.
    """
    # training, validation and a shorter last batch are programs of their own, and both towers count together
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    # unasked, a compiler that fails is no reason to end the run: it warns, and the block runs uncompiled
    torch._dynamo.config.suppress_errors = not is_asked_for
    for block in model.vision.blocks:
        block.compile(dynamic=False)  # few batch sizes, each with its own fastest program
    for block in model.text.blocks:
        block.compile(dynamic=True)  # as many texts as a batch has distinct ones


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
