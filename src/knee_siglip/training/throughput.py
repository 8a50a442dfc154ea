"""Training speed: pairs per second, model FLOPs utilisation (MFU), time without data, memory.

MFU = model FLOPs per second / peak FLOPs per second (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Model
FLOPs are what the mathematics needs: what is computed twice (gradient caching, gradient checkpointing) counts once.
"""

import resource
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from knee_siglip.encoders.flops import count_layer, training_flops
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel


@dataclass
class Throughput:
    """Measures the training steps alone, without validation and saving; continues after a resume.

    `peak`: FLOP/s of all devices together, None if unknown.
    """

    peak: float | None = None
    seconds: float = 0.0
    waited: float = 0.0
    pairs: int = 0
    flops: float = 0.0
    _since: float = field(default=0.0, repr=False)
    _steps: int = field(default=0, repr=False)

    def start(self) -> None:
        """Start the clock before the first step."""
        self._since = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Add time in which no batch was ready."""
        self.waited += seconds

    def count(self, pairs: int, flops: float) -> None:
        """Count a step that was started; flops: of all devices together."""
        self.pairs += pairs
        self.flops += flops
        self._steps += 1

    def lap(self) -> None:
        """Add the time of the steps counted so far, which the device has finished.

        Without a step since the last lap no time is added: the state may be saved right after validation.
        """
        now = time.perf_counter()
        if self._steps:
            self.seconds += now - self._since
        self._since, self._steps = now, 0

    def metrics(self) -> dict[str, float]:
        """pairs_per_second, data_wait_share (an upper bound), model_tflops_per_second, mfu if the peak is known."""
        if not self.seconds:
            return {}
        found = {
            "pairs_per_second": self.pairs / self.seconds,
            "data_wait_share": self.waited / self.seconds,
            "model_tflops_per_second": self.flops / self.seconds / 1e12,
        }
        if self.peak:
            found["mfu"] = self.flops / self.seconds / self.peak
        return found | {"peak_memory_mb": peak_memory_mb()}

    def state_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"seconds": self.seconds, "waited": self.waited, "pairs": self.pairs, "flops": self.flops}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.seconds, self.waited, self.flops = state["seconds"], state["waited"], state["flops"]
        self.pairs = int(state["pairs"])


def peak_memory_mb() -> float:
    """Peak memory: the GPU's if one is used, else the process's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def image_flops(model: KneeRadDinoSigLIPModel, image_size: int, cached_features: bool = False) -> int:
    """FLOPs, forward and backward, of training on one image of `image_size` pixels a side.

    cached_features: the vision tower's output is read from the store, so only the projection is computed.
    """
    projection = [
        count_layer(linear, 2 * linear.in_features * linear.out_features)
        for linear in model.visual_projection.modules()
        if isinstance(linear, nn.Linear)
    ]
    return training_flops(projection if cached_features else [*model.vision.layers(image_size), *projection])


def text_flops(model: KneeRadDinoSigLIPModel) -> int:
    """FLOPs, forward and backward, of training on one text padded to the whole position table."""
    return training_flops(model.text.layers())


def loss_flops(count: int, width: int) -> int:
    """FLOPs of the loss of `count` pairs of embeddings of `width`: logits, and gradients of images and texts."""
    return 3 * 2 * count**2 * width


def pair_flops(model: KneeRadDinoSigLIPModel, image_size: int, cached_features: bool = False) -> tuple[int, int]:
    """FLOPs of training on one image and on one text."""
    return image_flops(model, image_size, cached_features), text_flops(model)


def step_flops(of_pair: tuple[int, int], images: int, texts: int, width: int) -> int:
    """FLOPs of one optimizer step, on all devices together.

    of_pair: those of one image and of one text. images: in the group. texts: distinct ones, encoded once each. width:
    of an embedding; the loss pairs every image with every image's text.
    """
    image, text = of_pair
    return images * image + texts * text + loss_flops(images, width)


@dataclass(frozen=True)
class Peak:
    """Dense peak in TFLOP/s. `half`: bf16 and fp16 summed in float32; `tf32` None: no tensor cores for TF32 or bf16."""

    half: float
    tf32: float | None
    float32: float


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
    "V100-SXM2-16GB": Peak(125, None, 15.7),
    "V100-SXM2-32GB": Peak(125, None, 15.7),
    "V100-PCIE-16GB": Peak(112, None, 14),
    "V100-PCIE-32GB": Peak(112, None, 14),
    "T4": Peak(65, None, 8.1),
}
"""By the driver's name of the card, without the brand. Source: NVIDIA's datasheets, and for GeForce the GA102 and Ada
whitepapers; half of the value where a datasheet gives it with sparsity."""

BRANDS = ("NVIDIA ", "Tesla ", "GeForce ")


def peak_flops(device: torch.device, dtype: torch.dtype | None, tf32: bool) -> float | None:
    """Peak FLOP/s of matrix products of `dtype` on one device; None if unknown, so that no MFU is guessed.

    A part of a card (MIG), a laptop's or a market's own version has another name and another peak, which is unknown.

    dtype: the autocast type; None is float32, on tensor cores if `tf32` is allowed and the card has them.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for brand in BRANDS:
        name = name.removeprefix(brand)
    peak = PEAKS.get(name)
    if peak is None or (dtype == torch.bfloat16 and peak.tf32 is None):
        return None
    if dtype in (torch.bfloat16, torch.float16):
        return peak.half * 1e12
    if dtype in (None, torch.float32):
        return (peak.tf32 if tf32 and peak.tf32 else peak.float32) * 1e12
    return None
