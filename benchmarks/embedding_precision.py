"""python benchmarks/embedding_precision.py [--sets 5] [--patients 1000] [--output FILE]

The trained default model (`make repro` first) embeds drawn knees with its vision tower in float32, in fp16, which is a
GPU's default, and in bf16: how far apart embeddings, cosines, headline metrics and occlusion maps are. A CPU multiplies
the same rounded numbers and sums them in float32, as a GPU does here, only in another order.

fp16 is judged: its metrics on the test split, where one image of 332 is 0.003 and one text of 110 is 0.009, and finer
by their mean absolute difference over sets of knees that are drawn for it; its distances by the largest in these.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from claims import Claim, conclude

from knee_siglip.cli.train import CACHE_FACTS, MANIFEST, prepare
from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.evaluation.embedded import embed_prompts, embed_split
from knee_siglip.evaluation.headline import headline_from_predictions
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.explain.maps import occlusion_drops
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint
from knee_siglip.model.device import compute_in
from knee_siglip.model.training_facts import heard
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.sample.dataset import write_sample
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.manifest import read_manifest

EMBEDDING, METRIC, MAP = 1e-2, 2e-3, 5e-2
DISTANCES = ("distance of an image's embeddings", "difference of a cosine")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
JUDGED = "fp16"
MAPPED = 16
"""Images whose occlusion maps are compared."""
FIRST_SEED = 1000
"""Of knees that no training has seen."""


def new_knees(patients: int, seed: int, folder: Path) -> tuple[pd.DataFrame, CachedPixels]:
    """Manifest and pixels of drawn knees, all of them test rows."""
    os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
    sample, params = folder / "sample", load_params()
    write_sample(sample, patients=patients, seed=seed, size=params.sample.size)
    values = params.to_dict() | {"tracking": {"mlflow": "none", "wandb": "none"}}
    values["data"] |= {"csv": str(sample / "train.csv"), "images": str(sample / "images")}
    prepare(Params.model_validate(values), folder)
    manifest = read_manifest(folder / MANIFEST)
    return manifest.assign(split="test"), open_pixels(manifest, folder / CACHE_FACTS)


def map_differences(checkpoint: Checkpoint, pixels: np.ndarray) -> dict[str, float]:
    """Of the occlusion maps (B, G, G, D) in half precision to those in float32, relative to the norm of these."""
    images = torch.from_numpy(pixels)
    drops = {
        dtype: compute_in(dtype, images.device, lambda: occlusion_drops(checkpoint.model, images))
        for dtype in (None, *HALVES.values())
    }
    return {name: float((drops[dtype] - drops[None]).norm() / drops[None].norm()) for name, dtype in HALVES.items()}


def differences(checkpoint: Checkpoint, manifest: pd.DataFrame, pixels: CachedPixels) -> dict[str, dict[str, float]]:
    """Of the manifest's test rows, by precision: largest distances, and by how much each headline metric moves."""
    params = load_params()
    task = heard(task_of(params), checkpoint.facts)
    prompts, batch = embed_prompts(checkpoint, task), params.evaluate.batch_size
    exact, *halves = (
        embed_split("test", manifest, pixels, replace(checkpoint, vision_dtype=dtype), task, prompts, batch)
        for dtype in (None, *HALVES.values())
    )
    before = headline_from_predictions(predictions_of(exact, params.evaluate))
    found = {}
    for name, half in zip(HALVES, halves, strict=True):
        moved = half.image_embeds - exact.image_embeds
        after = headline_from_predictions(predictions_of(half, params.evaluate))
        found[name] = {
            DISTANCES[0]: float(np.linalg.norm(moved, axis=1).max()),
            DISTANCES[1]: float(np.abs(moved @ exact.text_embeds.T).max()),
            **{metric: after[metric] - before[metric] for metric in before},
        }
    return found


def claims_of(facts: Mapping[str, Any]) -> Iterator[Claim]:
    """What is judged of `map_differences`, of the `differences` of the test split and of those of the drawn sets."""
    on_test, maps = facts["test split"][JUDGED], facts["occlusion maps"][JUDGED]
    drawn = pd.DataFrame([found[JUDGED] for name, found in facts.items() if name.startswith("seed ")])
    metrics = drawn.columns.drop(list(DISTANCES))
    for name in DISTANCES:
        yield Claim(f"largest {name}", float(drawn[name].max()), "<=", EMBEDDING)
    for name in metrics:
        yield Claim(f"{name}, difference on the test split", abs(on_test[name]), "<=", METRIC)
    for name in metrics:
        yield Claim(f"{name}, mean difference on drawn sets", float(drawn[name].abs().mean()), "<=", METRIC)
    yield Claim("relative difference of occlusion maps", maps, "<=", MAP)


def main() -> None:
    """Embed in each precision and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    checkpoint, manifest = load_checkpoint(paths.BEST_MODEL), read_manifest(paths.MANIFEST)
    pixels = open_pixels(manifest, paths.CACHE_FACTS)
    test_rows = np.flatnonzero((manifest["split"] == "test").to_numpy())
    maps = map_differences(checkpoint, pixels[test_rows[:MAPPED]])
    by_set = {"test split": differences(checkpoint, manifest, pixels)}
    for seed in range(FIRST_SEED, FIRST_SEED + args.sets):
        with tempfile.TemporaryDirectory() as folder:
            by_set[f"seed {seed}"] = differences(checkpoint, *new_knees(args.patients, seed, Path(folder)))
    facts = {"occlusion maps": maps, **by_set}
    print(json.dumps(facts, indent=2))
    conclude([*claims_of(facts)], facts, args.output, "torch", "transformers")


if __name__ == "__main__":
    run_stage(main)
