"""python benchmarks/pipeline_run.py [--parts default large real] [--csv FILE] [--output FILE]

Run the committed pipeline in a fresh clone, with the installed environment, and hold the figures against their targets.
The parts run one after the other in one clone; the file keeps what it says of the others:

    default   `dvc repro` and two more seeds: time of the first run, headline metrics as means, time of a no-op. For
              README: python benchmarks/readme_figures.py
    large     image_size 448 as one experiment on top of a finished run: time, and that data stages are kept
    real      real radiographs (--csv, with `kl_grade`): zero-shot KL kappa and time

Prints target beside figure; exits non-zero when one is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from claims import Claim, hardware

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
"""The first is that of params.yaml."""
USERS_OWN = ("KNEE_SIGLIP_STORE", "MLFLOW_TRACKING_URI", "WANDB_MODE", "DVC_ROOT", "DVC_EXP_NAME")
"""Environment variables that would send a clone's runs to the user's stores and servers."""

Part = tuple[list[Claim], dict[str, Any]]


class Clone:
    """A clone of HEAD in a folder of its own, run with this interpreter's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "knee-siglip"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.folder)], check=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(self.folder / "src")}
        for name in USERS_OWN:
            self.env.pop(name, None)
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

    def headline(self) -> dict[str, float]:
        """The headline metrics of the last run."""
        return dict(json.loads((self.folder / "reports/metrics.json").read_text()))


def run_default(clone: Clone, seconds: float, committed: dict[str, float]) -> Part:
    """Three seeds of the default run, of which the first took `seconds`."""
    idle, _ = clone.run("dvc", "repro")
    test, found = clone.metrics(), [clone.headline()]
    for seed in SEEDS[1:]:
        clone.run("dvc", "exp", "run", "--set-param", f"seed={seed}")
        found.append(clone.headline())
    accuracy, kappa = [
        mean(each[name] for each in found) for name in ("contrastive_accuracy", "quadratic_weighted_kappa")
    ]
    claims = [
        Claim("seconds of the default run", seconds, "<=", 300),
        Claim("seconds of a second dvc repro", idle, "<=", 3),
        Claim("distinct texts in the test split", test["distinct_texts"], ">=", 80),
        Claim("contrastive accuracy, mean of three seeds", accuracy, ">=", 0.75),
        Claim("zero-shot KL quadratic weighted kappa, mean of three seeds", kappa, ">=", 0.93),
        Claim("ceiling of contrastive accuracy", test["ceiling"]["contrastive_accuracy"], ">=", 0.9),
        Claim("headline metrics that differ from the committed ones", len(differing(committed, found[0])), "<=", 0),
    ]
    return claims, {"seeds": SEEDS, "headline": found}


def differing(committed: dict[str, float], found: dict[str, float]) -> list[str]:
    """Names of the headline metrics that only one of both has, or that differ in any digit."""
    return [name for name in committed | found if committed.get(name) != found.get(name)]


def run_large(clone: Clone) -> Part:
    """448 px on top of the finished default run."""
    seconds, output = clone.run("dvc", "exp", "run", "--set-param", "image_size=448")
    kept = sum(f"Stage '{stage}' didn't change" in output for stage in ("sample", "validate", "backbones"))
    claims = [
        Claim("seconds of the 448 experiment", seconds, "<=", 720),
        Claim("data stages kept", kept, ">=", 3),
    ]
    return claims, {"test": clone.metrics(), "difference": clone.run("dvc", "metrics", "diff")[1].splitlines()}


def run_real(clone: Clone, csv: Path) -> Part:
    """Real radiographs with the default params, as README says."""
    overrides = {"data.csv": csv.resolve(), "data.images": csv.resolve().parent / "images"}
    arguments = [word for key, value in overrides.items() for word in ("-S", f"{key}={value}")]
    seconds, _ = clone.run("dvc", "exp", "run", *arguments)
    metrics = clone.metrics()
    kappa = metrics["zero_shot_kl"]["quadratic_weighted_kappa"]
    claims = [
        Claim("seconds on real radiographs", seconds, "<=", 360),
        Claim("zero-shot KL quadratic weighted kappa on real radiographs", kappa, ">=", 0.58),
    ]
    return claims, {"test": metrics}


def main() -> None:
    """Run, print, write, and fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("default", "large", "real"), default=["default", "large"])
    parser.add_argument("--csv", type=Path, help="CSV of real radiographs, for `real`")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if "real" in args.parts and args.csv is None:
        parser.error("the part real needs --csv")
    result = json.loads(args.output.read_text()) if args.output.is_file() else {}
    all_met = True
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        committed = clone.headline()
        seconds, _ = clone.run("dvc", "repro")
        parts: dict[str, Callable[[], Part]] = {
            "default": lambda: run_default(clone, seconds, committed),
            "large": lambda: run_large(clone),
            "real": lambda: run_real(clone, args.csv),
        }
        for part in args.parts:
            clone.run("git", "checkout", "--quiet", "--", ".")
            claims, details = parts[part]()
            print(*claims, sep="\n", flush=True)
            all_met &= all(claim.met for claim in claims)
            rows = [vars(claim) | {"met": claim.met} for claim in claims]
            result[part] = {"hardware": hardware("torch", "numpy"), "claims": rows, "details": details}
            args.output.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if all_met else 1)


if __name__ == "__main__":
    main()
