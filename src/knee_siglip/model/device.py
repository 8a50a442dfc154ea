"""Which device computes, and in which precision."""

from typing import TypeVar

import torch

from knee_siglip.core.errors import UsageError

Module = TypeVar("Module", bound=torch.nn.Module)


def place(model: Module, device: str | torch.device) -> Module:
    """Move a model in place and return it, with its type, which transformers' own `to` loses."""
    torch.nn.Module.to(model, device)
    return model


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: the GPU if there is one, else the CPU.

    Raises:
        UsageError: the named device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    # torch raises RuntimeError for an unknown device string, AssertionError for one it was not built for
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """`train.mixed_precision` to the autocast type; None computes in float32.

    `auto` is bf16 on GPUs that support it, fp16 on others, and float32 on the CPU, where bf16 was measured slower.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[precision]
