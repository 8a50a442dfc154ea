"""python benchmarks/gpu.py [--compile] [--output FILE]        on a machine with an NVIDIA GPU, less than 10 minutes
python benchmarks/gpu.py --toy                              every path at toy sizes on the CPU; the figures mean nothing

RAD-DINO and SigLIP base (their configs, random weights), both towers trained in bf16 at 224, 448 and 518 px by the real
Trainer from pixels in memory, images augmented: pairs/s, MFU, peak memory, share of the time without data. Beside it,
in the same process and with the same batch:

    open_clip   its ViT-B-16-SigLIP (at 512 px for 518) and its train_one_epoch, amp_bf16, batches ready on the GPU
    plain       the same towers as transformers runs them, fp32 and fp16, float32 pixels from the CPU at every step

Then the training options at 224 px, one step with 16,384 pairs, and a group's gradients in pieces beside the undivided
one's. No two texts are equal. Without open_clip (pip install -e '.[bench]') its claims are left out.

Prints target beside figure; exits 1 when one is missed, 2 without a GPU.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from claims import Claim, conclude
from gpu_exactness import gradient_differences, one_large_step
from gpu_training import Figures, Task, as_many_as_fit, shown, train_open_clip, train_ours, train_plain
from sizes import BASE, TOY, Sizes

from knee_siglip.core.errors import run_stage
from knee_siglip.params.sections import GradientCheckpointingParams

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "compile": {"compile": True},
    "gradient checkpointing": {"gradient_checkpointing": GradientCheckpointingParams(vision=True, text=True)},
    "attention eager": {"attention": "eager"},
    "prefetch 0": {"prefetch": 0},
    "float32, tf32": {"mixed_precision": "none"},
    "float32, no tf32": {"mixed_precision": "none", "tf32": False},
}
SHOWN = ("pairs_per_second", "mfu", "peak_memory_mb", "data_wait_share", "warm_up_seconds", "batch_size")


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    batches: pairs of a batch at each image side; peer_sides: open_clip's image side where its patch does not divide
    ours; peer: changes of open_clip's config. Steps: those timed. exact, compared: pairs of a group and of a piece.
    """

    sizes: Sizes
    batches: dict[int, int]
    peer_sides: dict[int, int]
    steps: int
    slow_steps: int
    exact: tuple[int, int]
    compared: tuple[int, int]
    peer: dict[str, Any] = field(default_factory=dict)


FULL = Scale(
    BASE,
    batches={224: 256, 448: 64, 518: 64},
    peer_sides={518: 512},
    steps=30,
    slow_steps=6,
    exact=(16384, 256),
    compared=(512, 64),
)
TINY_PEER = {
    "embed_dim": 192,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 192, "heads": 2, "layers": 1, "pool_type": "last"},
}
SMALLEST = Scale(
    TOY,
    batches={28: 4, 56: 4},
    peer_sides={28: 32, 56: 32},
    steps=2,
    slow_steps=1,
    exact=(12, 4),
    compared=(8, 2),
    peer=TINY_PEER,
)


def measure_sizes(scale: Scale, device: torch.device, compiled: bool) -> dict[int, dict[str, Figures]]:
    """Every way to train at every image size."""
    found: dict[int, dict[str, Figures]] = {}
    for image_size, batch_size in scale.batches.items():
        task = Task(scale.sizes, image_size, batch_size, scale.steps, device)
        few = replace(task, steps=scale.slow_steps)
        ways = found[image_size] = {}
        ways["ours"] = told(f"{image_size} px, ours", train_ours(task, mixed_precision="bf16", compile=compiled))
        if has_open_clip():
            side = scale.peer_sides.get(image_size, image_size)
            peer = as_many_as_fit(lambda task, side=side: train_open_clip(task, side, scale.peer), task)  # type: ignore[misc]
            ways["open_clip"] = told(f"{image_size} px, open_clip", peer)
        for name, half in (("plain fp32", False), ("plain fp16", True)):
            plain = as_many_as_fit(lambda task, half=half: train_plain(task, half), few)  # type: ignore[misc]
            ways[name] = told(f"{image_size} px, {name}", plain)
    return found


def measure_options(scale: Scale, device: torch.device) -> dict[str, Figures]:
    """Each option by itself at the smallest image size."""
    image_size, batch_size = next(iter(scale.batches.items()))
    task = Task(scale.sizes, image_size, batch_size, 2 * scale.slow_steps, device)
    return {
        name: told(f"{image_size} px, {name}", train_ours(task, **{"mixed_precision": "bf16"} | options))
        for name, options in OPTIONS.items()
    }


def measure_exactness(scale: Scale, device: torch.device) -> dict[str, Figures]:
    """A batch of many times what fits, and pieces beside the undivided group."""
    image_size = next(iter(scale.batches))
    task = Task(scale.sizes, image_size, scale.exact[0], 1, device)
    found = {"large batch": one_large_step(task, scale.exact[1], mixed_precision="bf16")}
    print(f"one step: {found['large batch']}", flush=True)
    for precision in ("none", "bf16"):
        compared = replace(task, batch_size=scale.compared[0])
        found[precision] = gradient_differences(compared, scale.compared[1], precision)
        print(f"{compared.batch_size} pairs in pieces, {precision}: {found[precision]}", flush=True)
    return found


def claims_of_size(image_size: int, ways: dict[str, Figures]) -> Iterator[Claim]:
    """Those that could be measured."""
    ours = ways["ours"]
    if "mfu" in ours:
        yield Claim(f"{image_size} px: MFU", ours["mfu"], ">=", 0.5)
    yield Claim(f"{image_size} px: share of the time without data", ours["data_wait_share"], "<=", 0.02)
    for peer, target in (("open_clip", 1.15), ("plain fp32", 3.0)):
        if peer in ways:
            ratio = ours["pairs_per_second"] / ways[peer]["pairs_per_second"]
            yield Claim(f"{image_size} px: pairs/s of ours / {peer}", ratio, ">=", target, "times")


def claims_of_exactness(found: dict[str, Figures]) -> Iterator[Claim]:
    """Norms over all parameters together."""
    large = found["large batch"]
    yield Claim(f"one step of {large['batch_size']} pairs: loss and gradients finite", large["finite"], ">=", 1)
    for precision, name, target in (("none", "float32", 1e-5), ("bf16", "bf16", 2e-2)):
        difference = found[precision]["all"]
        yield Claim(f"{name}: gradients in pieces beside the undivided group's", difference, "<=", target)


def has_open_clip() -> bool:
    """Whether the peer is installed."""
    return find_spec("open_clip") is not None


def told(name: str, figures: Figures) -> Figures:
    """Say it while the rest is measured."""
    print(f"{name}: {shown(SHOWN, figures)}", flush=True)
    return figures


@contextmanager
def sparing(is_toy: bool) -> Iterator[None]:
    """Toys are to be quick: the compiler is asked, but what it would compile in a minute runs as it is."""
    if not is_toy:
        yield
        return
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU, to see that every path runs")
    parser.add_argument("--compile", action="store_true", help="ours with train.compile: true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if not args.toy and not torch.cuda.is_available():
        print("this benchmark needs an NVIDIA GPU; --toy runs its code without one", file=sys.stderr)
        sys.exit(2)
    scale, device = (SMALLEST, torch.device("cpu")) if args.toy else (FULL, torch.device("cuda", 0))
    if not has_open_clip():
        print("open_clip is not installed (pip install -e '.[bench]'): its claims are left out")
    with sparing(args.toy):
        ways = measure_sizes(scale, device, args.compile)
        options = measure_options(scale, device)
        exactness = measure_exactness(scale, device)
    claims = [claim for size, found in ways.items() for claim in claims_of_size(size, found)]
    claims += claims_of_exactness(exactness)
    if args.toy:
        print(*claims, "toy sizes on a CPU: every path ran, and these figures mean nothing", sep="\n")
        return
    if not any("mfu" in found["ours"] for found in ways.values()):
        print("the peak of this GPU is not known: no MFU")
    facts = {"gpu": torch.cuda.get_device_name(device), "compile": args.compile, "sizes": ways, "options": options}
    packages = ("torch", "transformers", *(["open_clip_torch"] if has_open_clip() else []))
    conclude(claims, facts | {"exactness": exactness}, args.output, *packages)


if __name__ == "__main__":
    run_stage(main)
