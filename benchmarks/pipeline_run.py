"""python benchmarks/pipeline_run.py [--parts default large real] [--csv FILE] [--output FILE]

Run the committed pipeline in a fresh clone, with the installed environment, and hold the figures against their targets.
The parts run one after the other in one clone:

    default   `dvc repro` and two more seeds: time of the first run, accuracy and kappa as means, time of a no-op
    large     image_size 448 as one experiment on top of a finished run: time, and that data stages are kept
    real      real radiographs (--csv, with `kl_grade`): zero-shot KL kappa and time

Prints target beside figure; exits non-zero when one is missed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Target:
    """A figure that must be at least, or at most, `bound`."""

    name: str
    figure: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the figure keeps its bound."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'ok  ' if self.met else 'MISS'} {self.name}: {self.figure:.3f} (target {sign} {self.bound:g})"


class Clone:
    """A clone of HEAD in a folder of its own, run with this interpreter's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "knee-siglip"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.folder)], check=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(self.folder / "src")}
        for key, value in (("user.name", "benchmark"), ("user.email", "benchmark@example.org")):
            self.run("git", "config", key, value)

    def run(self, *command: str) -> tuple[float, str]:
        """Seconds and output of a command; its progress is shown."""
        started = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True, check=True)
        return time.perf_counter() - started, done.stdout

    def metrics(self) -> dict[str, Any]:
        """The test split's metrics of the last evaluation."""
        content = json.loads((self.folder / "reports/evaluation/metrics.json").read_text())
        return dict(content["test"])


def run_default(clone: Clone, seconds: float) -> tuple[list[Target], dict[str, Any]]:
    """Three seeds of the default run, of which the first took `seconds`."""
    idle, _ = clone.run("dvc", "repro")
    found = [clone.metrics()]
    for seed in ("1", "2"):
        clone.run("dvc", "exp", "run", "--set-param", f"seed={seed}")
        found.append(clone.metrics())
    accuracy = [each["contrastive_accuracy"] for each in found]
    kappa = [each["zero_shot_kl"]["quadratic_weighted_kappa"] for each in found]
    targets = [
        Target("seconds of the default run", seconds, 300, at_least=False),
        Target("seconds of a second dvc repro", idle, 3, at_least=False),
        Target("distinct texts in the test split", found[0]["distinct_texts"], 80, at_least=True),
        Target("contrastive accuracy, mean of three seeds", mean(accuracy), 0.75, at_least=True),
        Target("zero-shot KL quadratic weighted kappa, mean of three seeds", mean(kappa), 0.93, at_least=True),
        Target("ceiling of contrastive accuracy", found[0]["ceiling"]["contrastive_accuracy"], 0.9, at_least=True),
    ]
    return targets, {"contrastive_accuracy": accuracy, "quadratic_weighted_kappa": kappa}


def run_large(clone: Clone) -> tuple[list[Target], dict[str, Any]]:
    """448 px on top of the finished default run."""
    seconds, output = clone.run("dvc", "exp", "run", "--set-param", "image_size=448")
    kept = sum(f"Stage '{stage}' didn't change" in output for stage in ("sample", "validate", "backbones"))
    targets = [
        Target("seconds of the 448 experiment", seconds, 720, at_least=False),
        Target("data stages kept", kept, 3, at_least=True),
    ]
    return targets, {"test": clone.metrics(), "difference": clone.run("dvc", "metrics", "diff")[1].splitlines()}


def run_real(clone: Clone, csv: Path) -> tuple[list[Target], dict[str, Any]]:
    """Real radiographs with the default params, as README says."""
    overrides = {"data.csv": csv.resolve(), "data.images": csv.resolve().parent / "images"}
    arguments = [word for key, value in overrides.items() for word in ("-S", f"{key}={value}")]
    seconds, _ = clone.run("dvc", "exp", "run", *arguments)
    metrics = clone.metrics()
    kappa = metrics["zero_shot_kl"]["quadratic_weighted_kappa"]
    targets = [
        Target("seconds on real radiographs", seconds, 360, at_least=False),
        Target("zero-shot KL quadratic weighted kappa on real radiographs", kappa, 0.45, at_least=True),
    ]
    return targets, {"test": metrics}


def main() -> None:
    """Run, print, write, and fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("default", "large", "real"), default=["default", "large"])
    parser.add_argument("--csv", type=Path, help="CSV of real radiographs, for `real`")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    if "real" in args.parts and args.csv is None:
        parser.error("the part real needs --csv")
    targets: list[Target] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        seconds, _ = clone.run("dvc", "repro")
        parts = {
            "default": lambda: run_default(clone, seconds),
            "large": lambda: run_large(clone),
            "real": lambda: run_real(clone, args.csv),
        }
        for part in args.parts:
            clone.run("git", "checkout", "--quiet", "--", ".")
            found, details[part] = parts[part]()
            targets += found
    for target in targets:
        print(target)
    if args.output:
        result = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "targets": [vars(target) | {"met": target.met} for target in targets],
            "details": details,
        }
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if all(target.met for target in targets) else 1)


if __name__ == "__main__":
    main()
