"""python benchmarks/loss_memory.py [--largest N] [--output FILE]

The sigmoid loss of many pairs of embeddings (width 768, float32, forward and backward) beside open_clip's SigLipLoss
(`pip install -e '.[bench]'`): bytes that autograd keeps, peak memory of a process that does nothing else, and seconds.
Each measurement runs in a process of its own. The peer is measured up to the largest batch that this machine's memory
holds; times are compared there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from claims import Claim, conclude
from peers import open_clip
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks

WIDTH = 768
SMALLEST, LARGEST = 1024, 32768
OURS, PEER = "knee-siglip", "open_clip"
PEAK_GB = 3.0
REPEATS = 3
"""Up to 8,192 pairs; larger ones run once."""


def leaves(count: int) -> list[Tensor]:
    """Embeddings of `count` pairs, the scale and the bias, as leaves that take a gradient."""
    generator = torch.Generator().manual_seed(0)
    embeds = [F.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1) for _ in range(2)]
    return [leaf.requires_grad_() for leaf in (*embeds, torch.tensor(14.3), torch.tensor(-10.0))]


def compute_loss(project: str, inputs: list[Tensor]) -> Tensor:
    """The loss of one of the two projects; both take the diagonal as positive."""
    if project == OURS:
        images, texts, scale, bias = inputs
        ids = torch.arange(len(images)).unsqueeze(1)
        return contrastive_loss(images, texts, scale, bias, ids, ids, len(ids), Ranks())[0]
    loss: Tensor = open_clip("open_clip.loss").SigLipLoss()(*inputs)
    return loss


def measure(project: str, count: int) -> dict[str, float]:
    """Bytes kept by autograd (each storage once), best seconds of forward and backward, loss, peak memory so far."""
    inputs = leaves(count)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds: list[float] = []
    for _ in range(REPEATS if count <= 8192 else 1):
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = compute_loss(project, inputs)
        if not seconds:
            saved = sum(kept.values())
        loss.backward()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"saved_bytes": saved, "seconds": min(seconds), "loss": loss.item(), "peak_bytes": peak}


def in_a_process(project: str, count: int) -> dict[str, float] | None:
    """`measure` in a process of its own; None where the system ended it for want of memory."""
    command = [sys.executable, __file__, "--one", project, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{project}, {count} pairs: ended with {done.returncode} ({(done.stderr.strip() or 'killed')[-80:]})")
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{project}, {count} pairs: autograd keeps {found['saved_bytes'] / 1e6:.1f} MB, "
        f"peak {found['peak_bytes'] / 1e9:.2f} GB, {found['seconds']:.2f} s, loss {found['loss']:.4f}",
        flush=True,
    )
    return found


def measure_all(largest: int) -> dict[str, dict[int, dict[str, float]]]:
    """Both projects at 1,024 to `largest` pairs, in turn; a project that ran out of memory is not asked for more."""
    found: dict[str, dict[int, dict[str, float]]] = {OURS: {}, PEER: {}}
    ended = set()
    count = SMALLEST
    while count <= largest:
        for project in (OURS, PEER):
            result = None if project in ended or _is_hopeless(project, count) else in_a_process(project, count)
            if result is None:
                ended.add(project)
            else:
                found[project][count] = result
        count *= 2
    return found


def _is_hopeless(project: str, count: int) -> bool:
    """The peer needs at least five matrices of B x B; asking for more than there is would only stop the machine."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 5 * 4 * count**2
    if project == PEER and needed > 0.9 * available:
        print(f"{project}, {count} pairs: not tried, it needs {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB")
        return True
    return False


def main() -> None:
    """Measure, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=LARGEST)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    found = measure_all(args.largest)
    ours, peer = found[OURS], found[PEER]
    shared = max(peer)
    facts: dict[str, Any] = {"width": WIDTH, "compared_at": shared, **found}
    growth = ours[args.largest]["saved_bytes"] / ours[SMALLEST]["saved_bytes"]
    claims = [
        Claim(f"bytes kept, {args.largest} / {SMALLEST} pairs", growth, "<=", 1.01 * args.largest / SMALLEST, "times"),
        Claim(f"peak memory with {args.largest} pairs", ours[args.largest]["peak_bytes"] / 1e9, "<=", PEAK_GB, "GB"),
        Claim(
            f"open_clip's seconds / ours, {shared} pairs", peer[shared]["seconds"] / ours[shared]["seconds"], ">=", 1
        ),
        Claim(
            f"difference of the losses, {shared} pairs",
            abs(ours[shared]["loss"] / peer[shared]["loss"] - 1),
            "<=",
            1e-4,
        ),
    ]
    conclude(claims, facts, args.output, "torch", "open_clip_torch")


if __name__ == "__main__":
    main()
