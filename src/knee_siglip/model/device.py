"""Which device computes, and in which precision."""

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

from knee_siglip.core.errors import UsageError

Module = TypeVar("Module", bound=torch.nn.Module)

logger = logging.getLogger(__name__)

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
    """`evaluate.precision` and `infer.precision` to the autocast type of the vision tower; None computes in float32.

    `auto` is fp16 on GPUs that are fast in it, else float32. As fast as bf16, fp16 rounds to an eighth; `compute_in`
    sees to the numbers that are too large for it.

    Raises:
        UsageError: there is no such precision.
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" and _has_fast_fp16(device) else None
    known = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": None}
    if precision not in known:
        raise UsageError(f"precision = {precision!r}: must be auto, fp16, bf16 or float32")
    return known[precision]


def compute_in(dtype: torch.dtype | None, device: torch.device, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of `compute` under an autocast to `dtype`; None: in the weights' own type.

    What overflows in fp16, whose largest number is 65,504, becomes infinite and after the next norm no number. A result
    with such entries is computed again in the weights' own type, and a warning says so once.
    """
    if dtype == torch.float16:  # else a GPU may add up parts of a product in fp16 too
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        found = compute()
    if dtype != torch.float16 or found.isfinite().all():
        return found
    found = compute()
    if found.isfinite().all():  # else it is no overflow: the weights are damaged
        _warn_overflow()
    return found


def images_at_once(device: torch.device) -> int:
    """Images that are embedded in one batch: few stay in a CPU's cache, many fill a GPU."""
    return 64 if device.type == "cpu" else 256


@cache
def _warn_overflow() -> None:
    logger.warning("the model overflows in fp16: such batches are computed again in float32; precision: bf16 is faster")


def _has_fast_fp16(device: torch.device) -> bool:
    """Whether the card multiplies fp16 faster than float32, as all do since NVIDIA's Volta."""
    return torch.cuda.get_device_capability(device) >= (7, 0)


def _has_bf16(device: torch.device) -> bool:
    """Whether the card computes in bf16 itself; emulated, it is slower than float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
