"""python benchmarks/presets.py --csv CSV --images FOLDER [--rows N] [--epochs N] [--seeds N] [--arms ARM ...]

What the values of presets/rad-dino.yaml that differ from the reference's do on the small encoders: every parameter of
the image encoder at the full rate, and one change of it at a time. Judged on the val split, never on test. The small
image encoder was pretrained on drawn knees and has four blocks, so it can only show that no value does harm; where the
values come from is told in docs/full-size.md.

The claim: the preset's values together lose no more than `HARMLESS` of kappa against the reference's.
Prints target beside figure; exits 1 when it is missed.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude

from knee_siglip.cli.train import BACKBONES, BEST_MODEL, CACHE_FACTS, MANIFEST, prepare
from knee_siglip.core.nesting import flatten
from knee_siglip.core.running import run_stage
from knee_siglip.inference.predictor import Predictor
from knee_siglip.metrics.grading import agreement_metrics
from knee_siglip.params.files import parse_params
from knee_siglip.params.sections import Params
from knee_siglip.store.pixels import open_pixels
from knee_siglip.tables.manifest import read_manifest
from knee_siglip.training.run import TrainFiles, train

HARMLESS = 0.05
REFERENCE: dict[str, Any] = {"vision_learning_rate_scale": 1.0}
GENTLE = {"vision_learning_rate_scale": 0.2}
DECAY = {"vision_learning_rate_scale": 1.0, "layer_decay": 0.75}
AVERAGE = {"vision_learning_rate_scale": 1.0, "ema_decay": 0.999, "best_metric": "val_ema.contrastive_accuracy"}
ARMS: dict[str, dict[str, Any]] = {
    "reference": REFERENCE,
    "vision_learning_rate_scale: 0.2": GENTLE,
    "layer_decay: 0.75": DECAY,
    "ema_decay: 0.999": AVERAGE,
    "preset": DECAY | AVERAGE | GENTLE,
    "freeze.vision: lora": REFERENCE | {"freeze": {"vision": "lora"}},
}


def params_of(csv: Path, images: Path, epochs: int, seed: int, arm: dict[str, Any]) -> Params:
    """The default params with an arm's values, without trackers."""
    return parse_params(
        {
            "seed": seed,
            "data": {"csv": str(csv), "images": str(images)},
            "train": {"epochs": epochs, "best_metric": "val.contrastive_accuracy", **arm},
            "tracking": {"mlflow": "none", "wandb": "none"},
        }
    )


def choose_rows(csv: Path, rows: int, out: Path) -> None:
    """Write the first `rows` training rows and all of val and test, with absolute paths."""
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    train_rows = table.index[table["split"] == "train"]
    chosen = table.drop(train_rows[rows:])
    folder = csv.parent.resolve()
    chosen = chosen.assign(img_path=[str(folder / name) for name in chosen["img_path"]])
    chosen.to_csv(out, index=False)


def val_kappa(folder: Path) -> float:
    """Quadratic weighted kappa of the best model's zero-shot grades on val."""
    manifest = read_manifest(folder / MANIFEST)
    pixels = open_pixels(manifest, folder / CACHE_FACTS)
    rows = np.flatnonzero(((manifest["split"] == "val") & manifest["kl_grade"].notna()).to_numpy())
    predictor = Predictor(folder / BEST_MODEL)
    parts = np.array_split(rows, len(rows) // 64 + 1)
    embeds = np.concatenate([predictor.embed_images(pixels[part]) for part in parts])
    predicted = predictor.grade_probabilities(embeds).argmax(axis=1)
    grades = manifest["kl_grade"].iloc[rows].to_numpy(dtype=int)
    return agreement_metrics(grades, predicted, len(predictor.task.labels))["quadratic_weighted_kappa"]


def measure(params: Params, folder: Path) -> dict[str, float]:
    """Train in a prepared folder; kappa, and the metrics of the best epoch on val."""
    files = TrainFiles(
        manifest=folder / MANIFEST,
        cache_facts=folder / CACHE_FACTS,
        backbones=folder / BACKBONES,
        best_model=folder / BEST_MODEL,
        final_model=folder / "final_model.pt",
        report=folder / "reports/train",
    )
    train(params, files)
    report = flatten(json.loads((files.report / "metrics.json").read_text()))
    names = ("val.contrastive_accuracy", "val.loss", "parameters.trainable")
    return {"kappa": val_kappa(folder)} | {name: float(report[name]) for name in names}


def main() -> None:
    """Train every arm with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/presets.json"))
    options = parser.parse_args()
    arms = {name: values for name, values in ARMS.items() if name in ("reference", "preset", *options.arms)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choose_rows(options.csv, options.rows, folder / "chosen.csv")
        for seed in range(options.seeds):
            for arm, values in arms.items():
                params = params_of(folder / "chosen.csv", options.images, options.epochs, seed, values)
                if not (folder / MANIFEST).exists():
                    prepare(params, folder)
                found[arm].append(measure(params, folder))
                print(f"seed {seed}, {arm}: {found[arm][-1]}", flush=True)
    kappas = {arm: mean(run["kappa"] for run in runs) for arm, runs in found.items()}
    loss = kappas["reference"] - kappas["preset"]
    facts = {"rows": options.rows, "epochs": options.epochs, "kappa": kappas, "runs": found}
    conclude([Claim("kappa lost by the preset's values", loss, "<=", HARMLESS)], facts, options.output, "torch", "peft")


if __name__ == "__main__":
    run_stage(main)
