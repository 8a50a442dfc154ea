"""python benchmarks/data_sizes.py --csv CSV --images FOLDER [--sizes N ...] [--seeds N ...] [--runs FILE]

What the default training learns from few real radiographs (`kl_grade`), beside the earlier recipe of 16 epochs: kappa
of the zero-shot grade on test by the number of training rows, mean of the seeds, with a 95 % interval over patients.
Each seed draws other patients. A size above what the CSV holds takes all of its training rows. Finished trainings are
kept in --runs, so that an interrupted call goes on, and a later one adds seeds.

The claims: no default training collapses, that is, gives all test images one grade, and the largest size reaches the
mean kappa that is asked of 1,600 rows. Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude

from knee_siglip.cli.train import BACKBONES, BEST_MODEL, CACHE_FACTS, MANIFEST, prepare
from knee_siglip.core.running import run_stage
from knee_siglip.inference.predictor import Predictor
from knee_siglip.metrics.bootstrap import kappa_statistic, resample
from knee_siglip.metrics.grading import agreement_metrics
from knee_siglip.metrics.intervals import percentile_interval
from knee_siglip.params.files import parse_params
from knee_siglip.params.sections import Params
from knee_siglip.store.pixels import open_pixels
from knee_siglip.tables.ids import independent_units
from knee_siglip.tables.manifest import read_manifest, write_manifest
from knee_siglip.training.run import TrainFiles, train

SIZES = (60, 120, 250, 500, 1000, 1600)
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "16 epochs": {
        "epochs": 16,
        "learning_rate": 0.001,
        "vision_learning_rate_scale": 1.0,
        "augment": {"mirror": 0.0},
    },
}
"""The second is what README recommended for real radiographs before `train.steps`."""

UNUSED = "unused"


def params_of(csv: Path, images: Path, seed: int, arm: dict[str, Any]) -> Params:
    """The default params with an arm's values, without trackers."""
    return parse_params(
        {
            "seed": seed,
            "data": {"csv": str(csv), "images": str(images)},
            "train": arm,
            "tracking": {"mlflow": "none", "wandb": "none"},
        }
    )


def keep_rows(manifest: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """The manifest with only so many training rows, patient by patient in an order drawn by the seed."""
    train_rows = manifest.index[manifest["split"] == "train"]
    patients = manifest.loc[train_rows, "patient_id"]
    drawn = np.random.default_rng(seed).permutation(patients.unique())
    order = patients.map({patient: place for place, patient in enumerate(drawn)}).sort_values(kind="stable").index
    changed = manifest.copy()
    changed.loc[order[rows:], "split"] = UNUSED
    return changed


def graded(folder: Path, files: TrainFiles, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actual and predicted grades, and patients, of a split's graded rows."""
    manifest = read_manifest(files.manifest)
    pixels = open_pixels(manifest, folder / CACHE_FACTS)
    rows = np.flatnonzero(((manifest["split"] == split) & manifest["kl_grade"].notna()).to_numpy())
    predictor = Predictor(files.best_model)
    embeds = np.concatenate(
        [predictor.embed_images(pixels[part]) for part in np.array_split(rows, len(rows) // 64 + 1)]
    )
    chosen = manifest.iloc[rows]
    grades = chosen["kl_grade"].to_numpy(dtype=int)
    return grades, predictor.grade_probabilities(embeds).argmax(axis=1), independent_units(chosen).numbers


def measure(params: Params, folder: Path, rows: int) -> dict[str, Any]:
    """Train on so many rows in a prepared folder; the test grades, and what training says of itself."""
    run = folder / "run"
    files = TrainFiles(
        manifest=run / MANIFEST,
        cache_facts=folder / CACHE_FACTS,
        backbones=folder / BACKBONES,
        best_model=run / BEST_MODEL,
        final_model=run / "final_model.pt",
        report=run / "reports/train",
    )
    run.mkdir(exist_ok=True)
    write_manifest(keep_rows(read_manifest(folder / MANIFEST), rows, params.seed), files.manifest)
    train(params, files)
    verdict = json.loads((files.report / "verdict.json").read_text())
    grades, predicted, patients = graded(folder, files, "test")
    on_val = graded(folder, files, "val")[:2]
    return {
        "grades": grades.tolist(),
        "predicted": predicted.tolist(),
        "patients": patients.tolist(),
        "val_kappa": kappa_of(*on_val),
        "rows": verdict["train_rows"],
        "steps": verdict["steps"],
        "signs": [sign["name"] for sign in verdict["signs"]],
    }


def kappa_of(grades: np.ndarray, predicted: np.ndarray) -> float:
    """Quadratic weighted kappa."""
    classes = int(max(grades.max(), predicted.max())) + 1
    return float(agreement_metrics(grades, predicted, classes)["quadratic_weighted_kappa"])


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kappa of each seed, their mean and its interval: every resample draws the same patients for all seeds."""
    pairs = [(np.array(run["grades"]), np.array(run["predicted"])) for run in runs]
    statistics = [kappa_statistic(grades, predicted) for grades, predicted in pairs]
    interval = percentile_interval(resample(statistics, np.array(runs[0]["patients"])).mean(axis=0))
    kappas = [kappa_of(*pair) for pair in pairs]
    return {
        "rows": runs[0]["rows"],
        "steps": runs[0]["steps"],
        "kappa": mean(kappas),
        "interval": interval and [interval.low, interval.high],
        "kappa_of_seeds": kappas,
        "val_kappa_of_seeds": [run["val_kappa"] for run in runs],
        "grades_predicted": [len(np.unique(run["predicted"])) for run in runs],
        "signs": [run["signs"] for run in runs],
    }


def measured_runs(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every training by its arm, size and seed: those of --runs, and the others, which are added there."""
    kept: Path = arguments.runs
    runs = dict(json.loads(line) for line in kept.read_text().splitlines()) if kept.is_file() else {}
    wanted = [(arm, size, seed) for seed in arguments.seeds for size in arguments.sizes for arm in ARMS]
    missing = [run for run in wanted if name_of(*run) not in runs]
    with tempfile.TemporaryDirectory() as name:
        if missing:
            prepare(params_of(arguments.csv, arguments.images, 0, {}), Path(name))
        for arm, size, seed in missing:
            params = params_of(arguments.csv, arguments.images, seed, ARMS[arm])
            run = runs[name_of(arm, size, seed)] = measure(params, Path(name), size)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name_of(arm, size, seed), run]) + "\n")
    return runs


def name_of(arm: str, size: int, seed: int) -> str:
    """One training's name in --runs."""
    return f"{arm}, {size} rows, seed {seed}"


def main() -> None:
    """Train every arm on every size with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("data_sizes.runs.jsonl"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    runs = measured_runs(arguments)
    curves: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for size in arguments.sizes:
        for arm in ARMS:
            point = summary([runs[name_of(arm, size, seed)] for seed in arguments.seeds])
            curves[arm].append(point)
            print(f"{size} rows, {arm}: {point}")
    collapsed = sum(grades == 1 for point in curves["default"] for grades in point["grades_predicted"])
    facts = {"seeds": arguments.seeds, "curves": curves}
    largest = max(curves["default"], key=lambda point: point["rows"])
    claims = [
        Claim("default trainings that collapse", collapsed, "<=", 0),
        Claim(f"mean kappa of default trainings on {largest['rows']} rows", largest["kappa"], ">=", 0.68),
    ]
    conclude(claims, facts, arguments.output, "torch")


if __name__ == "__main__":
    run_stage(main)
