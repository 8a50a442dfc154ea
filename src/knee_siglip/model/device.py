"""Which device computes, and in which precision."""

from typing import TypeVar

import torch

from knee_siglip.core.errors import UsageError

Module = TypeVar("Module", bound=torch.nn.Module)

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


def place(model: Module, device: str | torch.device) -> Module:
    """Move a model in place and return it, with its type, which the `to` of the library's models loses."""
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the GPU's memory was full. torch has a class for its own allocator; cuBLAS's and cuDNN's are told apart
    by their message alone."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(cause in message for cause in OUT_OF_MEMORY)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """`train.mixed_precision` to the autocast type; None computes in float32.

    `auto` is bf16 on GPUs that support it, fp16 on others, and float32 on the CPU, where bf16 was measured slower.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if _has_bf16(device) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[precision]


def embedding_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """`evaluate.precision` and `infer.precision` to the autocast type of the towers; None computes in float32.

    `auto` is bf16 on GPUs that support it, else float32: fp16 could overflow in a tower that was trained in bf16.

    Raises:
        UsageError: there is no such precision.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and _has_bf16(device) else None
    known = {"bf16": torch.bfloat16, "float32": None}
    if precision not in known:
        raise UsageError(f"precision = {precision!r}: must be auto, bf16 or float32")
    return known[precision]


def images_at_once(device: torch.device) -> int:
    """Images that are embedded in one batch: few stay in a CPU's cache, many fill a GPU."""
    return 64 if device.type == "cpu" else 256


def _has_bf16(device: torch.device) -> bool:
    """Whether the card computes in bf16 itself; emulated, it is slower than float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
