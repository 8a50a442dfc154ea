"""python benchmarks/evaluate_stage.py [--skip_null] [--output FILE]

The evaluate stage after `dvc repro`: its seconds as DVC runs it, and what it says of the default run. Then the null
test: impressions, grades and findings are dealt out to the images anew within each split, the default model is trained
on that, and the whole evaluation must find it at chance, and its page say so. The null test takes about three minutes.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude

from knee_siglip.cli.train import CACHE_FACTS, MANIFEST, prepare, train_in
from knee_siglip.core import paths
from knee_siglip.core.nesting import flatten
from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.report.evaluation.page import write_page
from knee_siglip.report.evaluation.results import read_results

IMAGE_COLUMNS = ("img_path", "split", "patient_id", "study_id", "view")
"""What stays with an image when the rest of its row is dealt out anew."""

NO_BETTER = "This model is no better than chance"

AT_CHANCE = {
    "zero_shot_kl.quadratic_weighted_kappa": (0.0, 0.15),
    "zero_shot_kl.macro_auroc": (0.5, 0.07),
    "zero_shot_kl.balanced_accuracy": (0.2, 0.08),
    "zero_shot_kl.oa.auroc": (0.5, 0.1),
    "linear_probe.share_100.quadratic_weighted_kappa": (0.0, 0.2),
}
"""Metric to its value at chance, and how far 318 images may lie from that: some three standard errors."""


def measure_stage() -> tuple[list[Claim], dict[str, Any]]:
    """Run the stage as DVC does."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "stages/evaluate.py"], env=os.environ | {"DVC_ROOT": str(Path.cwd())}, check=True)
    seconds = time.perf_counter() - started
    figures = flatten(json.loads((paths.EVALUATION_REPORT / "metrics.json").read_text())["test"])
    claims = [
        Claim("seconds of the evaluate stage", seconds, "<=", 45),
        Claim("the default run beats every baseline", figures["verdict.beats_baselines"], ">=", 1),
    ]
    return claims, {"seconds": seconds, "figures": len(figures)}


def measure_null() -> tuple[list[Claim], dict[str, Any]]:
    """Train and evaluate on rows whose images belong to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
        deal_out(paths.SAMPLE, folder / "train.csv")
        values = load_params().to_dict()
        values["tracking"] |= {"mlflow": "none", "wandb": "none"}
        values["data"] |= {"csv": str(folder / "train.csv"), "images": str((paths.SAMPLE / "images").absolute())}
        params = Params.model_validate(values)
        prepare(params, folder)
        train_in(folder, "cpu")
        files = EvaluateFiles(
            folder / MANIFEST,
            folder / CACHE_FACTS,
            folder / "best_model.pt",
            folder / "backbones",
            folder / "evaluation",
        )
        figures = evaluate(params, files, "cpu")["test"]
        write_page(files.report / "index.html", read_results(files.report, folder / paths.TRAIN_REPORT / "live"))
        page = (files.report / "index.html").read_text()
    return list(null_claims(figures, NO_BETTER in page)), {name: figures[name] for name in sorted(figures)}


def deal_out(sample: Path, csv: Path) -> None:
    """Write the sample's CSV with all columns but the image's own permuted within each split."""
    table = pd.read_csv(sample / "train.csv", dtype=str)
    dealt = [name for name in table if name not in IMAGE_COLUMNS]
    rng = np.random.default_rng(0)
    for _, rows in table.groupby("split").groups.items():
        table.loc[rows, dealt] = table.loc[rng.permutation(rows), dealt].to_numpy()
    table["img_path"] = [str((sample / path).absolute()) for path in table["img_path"]]
    table.to_csv(csv, index=False)


def null_claims(figures: dict[str, Any], is_said: bool) -> Iterator[Claim]:
    """Every kind of figure at chance."""
    for name, (chance, margin) in AT_CHANCE.items():
        yield Claim(f"null: {name} beside {chance:g}", abs(figures[name] - chance), "<=", margin)
    for name in ("contrastive_accuracy", "retrieval.image_to_text.recall_at_1", "retrieval.text_to_image.recall_at_1"):
        excess = figures[name] - figures[f"baseline.constant.{name}"]
        yield Claim(f"null: {name} above that of no information", excess, "<=", 0.03)
    yield Claim("null: beats the baselines", figures["verdict.beats_baselines"], "<=", 0)
    yield Claim("null: the page says that it is no better than chance", int(is_said), ">=", 1)


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip_null", action="store_true", help="the stage alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    claims, facts = measure_stage()
    if not args.skip_null:
        found, facts["null"] = measure_null()
        claims += found
    conclude(claims, facts, args.output, "torch", "scikit-learn")


if __name__ == "__main__":
    main()
