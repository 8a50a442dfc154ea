"""What the machine can do at best: copies, matrix products, attention."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from claims import hardware
from gpu_phases.clock import timed
from gpu_phases.runner import Figures
from gpu_phases.scale import Scale
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PACKAGES = ("torch", "transformers", "triton", "timm", "open_clip_torch", "numpy", "pydantic")
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
REPEATS = 10


def describe(scale: Scale, device: torch.device) -> Figures:
    """Versions, and the rates of pinned and pageable copies and of bf16 matrix products."""
    facts: Figures = hardware() | {"cuda": torch.version.cuda, "versions": _versions()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "sms": properties.multi_processor_count,
        }
    source = torch.empty(scale.copied, dtype=torch.uint8)
    facts["pageable_copy_gb_per_second"] = _copy_rate(source, device)
    if device.type == "cuda":
        facts["pinned_copy_gb_per_second"] = _copy_rate(source.pin_memory(), device)
    facts["matrix_tflops_per_second"] = {str(shape): _matrix_rate(*shape, device) for shape in scale.matrix}
    return facts


def attention_backends(scale: Scale, device: torch.device) -> Figures:
    """Milliseconds of one forward and backward pass at each length, by backend; a text naming why it cannot."""
    found: Figures = {}
    heads, width = scale.sizes.vision.heads, scale.sizes.vision.width // scale.sizes.vision.heads
    for tokens in scale.tokens:
        batch = max(1, scale.matrix[0][0] // tokens)
        shape = (batch, heads, tokens, width)
        inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        found[str(tokens)] = {name: _attention_time(kind, inputs) for name, kind in BACKENDS.items()}
    return found


def _attention_time(kind: SDPBackend, inputs: Sequence[torch.Tensor]) -> float | str:
    query, key, value = inputs

    def once() -> None:
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    try:
        with sdpa_kernel(kind):
            return 1000 * _seconds_each(once, query.device)
    except RuntimeError as error:  # this backend lacks the shape, the type or the device
        return str(error).splitlines()[0]


def _copy_rate(source: torch.Tensor, device: torch.device) -> float:
    target = torch.empty_like(source, device=device)
    return source.nbytes / _seconds_each(lambda: target.copy_(source, non_blocking=True), device) / 1e9


def _matrix_rate(rows: int, columns: int, inner: int, device: torch.device) -> float:
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    return 2 * rows * columns * inner / _seconds_each(lambda: left @ right, device) / 1e12


def _seconds_each(work: Callable[[], object], device: torch.device) -> float:
    """Mean over `REPEATS`, after two that warm up."""
    work()
    work()

    def repeated() -> None:
        for _ in range(REPEATS):
            work()

    return timed(repeated, device) / REPEATS


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
