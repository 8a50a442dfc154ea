"""python benchmarks/gpu_all.py --output FOLDER [--budget 460]     every GPU figure, within that many seconds
python benchmarks/gpu_all.py --output FOLDER --only PATTERN     the phases whose names match the regular expression
python benchmarks/gpu_all.py --toy --output FOLDER              every path at toy sizes on the CPU; figures mean nothing

For a machine with an NVIDIA GPU, Python 3.12, torch and torchvision, and nothing else to install: `gpu_wheels.py`,
run before where there is a network, collects the rest into build/gpu-wheels, which travels with the repository.

RAD-DINO and SigLIP base with random weights, on random images, by this project's own Trainer; beside them open_clip's
ViT-B-16-SigLIP in its own loop and Hugging Face's towers in a plain one. Every phase appends a line to
FOLDER/gpu_all.jsonl as it ends; one that fails, or no longer fits into the budget, leaves a line too and the rest runs.

Prints goals beside figures last; exits 1 when one is missed or was not measured, 2 without a GPU.
"""

import argparse
import faulthandler
import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_wheels import FOLDER, ROOT, use_wheels

OVERTIME = 60
"""Seconds beyond the budget after which a phase that hangs is killed; what was measured is on disk."""


@contextmanager
def sparing(is_toy: bool) -> Iterator[None]:
    """Toys are to be quick: the compiler is asked, but what it would compile in a minute runs as it is."""
    import torch

    if not is_toy:
        yield
        return
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield


def measure(is_toy: bool, folder: Path, only: str, budget: float, started: float) -> int:
    """Run the phases whose names match `only`; returns the exit code."""
    import torch

    if not is_toy and not torch.cuda.is_available():
        print("this benchmark needs an NVIDIA GPU; --toy runs its code without one", file=sys.stderr)
        return 2
    # After the wheels are on the path
    from gpu_phases.phases import all_phases
    from gpu_phases.reading import stored_images
    from gpu_phases.runner import Report
    from gpu_phases.scale import FULL, SMALLEST

    gc.freeze()  # what the imports made: not to be looked through before each phase
    scale, device = (SMALLEST, torch.device("cpu")) if is_toy else (FULL, torch.device("cuda", 0))
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder / "gpu_all.jsonl")
    with sparing(is_toy), stored_images(scale) as images:
        phases = [phase for phase in all_phases(scale, device, images) if re.search(only, phase.name)]
        report.run(phases, budget, started)
    report.print_table()
    if is_toy:
        print("toy sizes on a CPU: these figures mean nothing")
        return 1 if report.failures else 0
    return 0 if report.all_met else 1


def main() -> None:
    """Make the imports possible, then measure."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu_all.jsonl")
    parser.add_argument("--budget", type=float, default=460, help="seconds for everything, imports included")
    parser.add_argument("--only", default="", metavar="PATTERN", help="run matching phases alone")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU, to see that every path runs")
    parser.add_argument("--wheels", type=Path, default=FOLDER, help="what gpu_wheels.py collected")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT / "src"))
    faulthandler.dump_traceback_later(args.budget + OVERTIME, exit=True)
    unpacked = use_wheels(args.wheels)  # held until the end: they are imported from it
    code = measure(args.toy, args.output, args.only, args.budget, started)
    if unpacked:
        unpacked.cleanup()
    sys.exit(code)


if __name__ == "__main__":
    main()
