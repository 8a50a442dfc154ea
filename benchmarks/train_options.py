"""python benchmarks/train_options.py [--sizes small vit-s] [--rounds N] [--only OPTION ...] [--output FILE]

What each training option does to this project's speed and memory on the device at hand, after `dvc repro`: the default
of params.yaml, and one change of it at a time. `small`: the pipeline's towers and all its training pairs; `vit-s`:
random weights, 32 pairs in batches of 16. Each option trains in a process of its own, in turns with the default; the
table shows the median ratio within a turn. Peak memory is the GPU's where there is one, else the process's.

The claim: no option that trains the same weights is much faster than the default in every turn; even equal options
differ by a tenth within one (`mixed_precision: none` is the default on a CPU). The frozen tower stands apart.
Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from claims import Claim, conclude
from contenders import Contender
from sizes import SMALL, VIT_S
from training_ways import Ours, Work

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.model.device import pick_device
from knee_siglip.params.sections import GradientCheckpointingParams

DEFAULT, FROZEN = "default", "frozen image tower, cached features"
SIZES = {SMALL.name: SMALL, VIT_S.name: VIT_S}
AMOUNT: dict[str, tuple[int | None, int]] = {SMALL.name: (None, 64), VIT_S.name: (32, 16)}
"""Pairs of an epoch (None: all there are) and of a batch."""

FASTEST_ALTERNATIVE = 1.1


def options_of(batch_size: int) -> dict[str, dict[str, Any]]:
    """What is changed of `train`."""
    return {
        "mixed_precision: none": {"mixed_precision": "none"},
        "mixed_precision: bf16": {"mixed_precision": "bf16"},
        "compile: true": {"compile": True},
        "attention: eager": {"attention": "eager"},
        "gradient_checkpointing of both": {
            "gradient_checkpointing": GradientCheckpointingParams(vision=True, text=True)
        },
        "prefetch: 0": {"prefetch": 0},
        "prefetch: 1": {"prefetch": 1},
        "prefetch: 2": {"prefetch": 2},
        f"micro_batch_size: {batch_size // 2}": {"micro_batch_size": batch_size // 2},
        FROZEN: {},
    }


def measure(size: str, rounds: int, only: Sequence[str]) -> dict[str, dict[str, float]]:
    """The default and the options of one size: every one, or `only` these."""
    pairs, batch_size = AMOUNT[size]
    work = Work(SIZES[size], paths.MANIFEST, paths.CACHE_FACTS, pairs, batch_size)
    device = pick_device()
    found: dict[str, dict[str, float]] = {}
    seconds: list[float] = []
    with closing(Contender(DEFAULT, partial(Ours, work, device=device))) as default:
        for name, options in options_of(batch_size).items():
            if only and name not in only:
                continue
            make = partial(Ours, work, frozen=name == FROZEN, device=device, options=options)
            with closing(Contender(f"{size}, {name}", make)) as option:
                turns = [(default.epoch("given"), option.epoch("given")) for _ in range(rounds)]
            usual, changed = zip(*turns, strict=True)
            seconds += [epoch.seconds for epoch in usual]
            ratios = [before.seconds / after.seconds for before, after in turns]
            found[name] = {
                "pairs_per_second": median(epoch.pairs / epoch.seconds for epoch in changed),
                "times_the_default": median(ratios),
                "times_the_default_at_least": min(ratios),
                "peak_memory_mb": changed[-1].peak_mb,
                "start_seconds": start_seconds(option.facts, median(epoch.seconds / epoch.pairs for epoch in changed)),
            }
            print(f"{size}, {told(name, found[name])}", flush=True)
        per_pair = median(seconds) / usual[0].pairs
        found[DEFAULT] = {
            "pairs_per_second": 1 / per_pair,
            "times_the_default": 1.0,
            "times_the_default_at_least": 1.0,
            "peak_memory_mb": usual[-1].peak_mb,
            "start_seconds": start_seconds(default.facts, per_pair),
        }
        print(f"{size}, {told(DEFAULT, found[DEFAULT])}", flush=True)
    return found


def start_seconds(facts: dict[str, Any], seconds_per_pair: float) -> float:
    """How much longer the first steps took than as many later ones: what compiling costs, above all."""
    return float(facts["seconds_of_trial"] - facts["pairs_of_trial"] * seconds_per_pair)


def told(name: str, figures: dict[str, float]) -> str:
    """One row of the table."""
    return (
        f"{name:<36} {figures['pairs_per_second']:8.1f} pairs/s, {figures['times_the_default']:6.2f} times, "
        f"peak {figures['peak_memory_mb']:6.0f} MB, start {figures['start_seconds']:+6.1f} s"
    )


def claim_of(size: str, found: dict[str, dict[str, float]]) -> Claim:
    """The fastest of those that train the same weights."""
    same = {name: figures["times_the_default_at_least"] for name, figures in found.items() if name != FROZEN}
    fastest = max(same, key=lambda name: same[name])
    return Claim(
        f"{size}: fastest ({fastest}) / default, least ratio", same[fastest], "<=", FASTEST_ALTERNATIVE, "times"
    )


def measure_all(sizes: Sequence[str], rounds: int, only: Sequence[str]) -> dict[str, Any]:
    """By size."""
    os.environ["KNEE_SIGLIP_STORE"] = str(paths.store_root())
    return {size: measure(size, rounds, only) for size in sizes}


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    known = list(dict.fromkeys(name for _, batch_size in AMOUNT.values() for name in options_of(batch_size)))
    parser.add_argument("--only", nargs="+", default=[], choices=known)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    found = measure_all(args.sizes, args.rounds, args.only)
    claims = [claim_of(size, figures) for size, figures in found.items()]
    conclude(claims, {"device": str(pick_device())} | found, args.output, "torch", "transformers")


if __name__ == "__main__":
    run_stage(main)
