"""python benchmarks/train_against.py [--revision REV] [--rounds 8] [--epochs 3] [--output FILE]

How fast the default training is beside an earlier revision of this project, on this machine and with this interpreter's
packages: both are cloned, make their own sample and encoders, and train some epochs in turns, each as a process of its
own without trackers. The figure is pairs/s as the stage itself counts them, the median of all rounds, since a shared
machine's own speed changes by a fifth from one to the next. By default the revision is the first in which idle threads
sleep, of 2026-11-27. Takes seven minutes on two idle cores.

Prints target beside figure; exits 1 when it is missed.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from statistics import median

from claims import Claim, conclude
from pipeline_run import Clone

SLEEPING_THREADS = "b5c9d60"
CHANGES = {"mlflow": "none", "wandb": "none", "steps": "auto"}
"""Of params.yaml, where the revision has the key."""


def prepare(folder: Path, revision: str, epochs: int) -> Clone:
    """A clone of a revision with all that its training reads."""
    folder.mkdir()
    clone = Clone(folder)
    clone.run("git", "checkout", "--quiet", revision)
    clone.run("dvc", "repro", "--quiet", "preprocess", "backbones")
    clone.env["DVC_ROOT"] = str(clone.folder)  # pixels and states stay in the clone, as under DVC
    file = clone.folder / "params.yaml"
    text = file.read_text()
    for key, value in (CHANGES | {"epochs": str(epochs)}).items():
        text = re.sub(rf"^(  {key}:) [^#\n]*", rf"\1 {value} ", text, count=1, flags=re.MULTILINE)
    file.write_text(text)
    return clone


def pairs_per_second(clone: Clone) -> float:
    """Of one training; a finished one leaves no state that the next could resume."""
    clone.run(sys.executable, "stages/train.py")
    return float(json.loads((clone.folder / "reports/train/speed.json").read_text())["pairs_per_second"])


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default=SLEEPING_THREADS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        revisions = {"before": args.revision, "now": "HEAD"}
        clones = {label: prepare(Path(name) / label, each, args.epochs) for label, each in revisions.items()}
        rates: dict[str, list[float]] = {label: [] for label in clones}
        for _ in range(args.rounds):
            for label, clone in clones.items():
                rates[label].append(pairs_per_second(clone))
                print(f"{label}: {rates[label][-1]:.0f} pairs/s", flush=True)
    ratio = median(rates["now"]) / median(rates["before"])
    claim = Claim(f"pairs/s / those of {args.revision}", ratio, ">=", 1.3)
    conclude([claim], {"revision": args.revision, "pairs_per_second": rates}, args.output, "torch")


if __name__ == "__main__":
    main()
