"""python benchmarks/bf16_embedding.py [--split test] [--output FILE]

The trained default model (`make repro` first) embeds a split with its towers in float32 and in bf16, which is a GPU's
default: how far apart embeddings, cosines, headline metrics and occlusion maps are. A CPU multiplies the same bf16
numbers and sums them in float32 too, only in another order.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from claims import Claim, conclude

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.evaluation.embedded import EmbeddedSplit, embed_prompts, embed_split
from knee_siglip.evaluation.headline import headline_from_predictions
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.explain.maps import occlusion_drops
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint
from knee_siglip.model.training_facts import heard
from knee_siglip.params.files import load_params
from knee_siglip.params.tasks import task_of
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.manifest import read_manifest

EMBEDDING, METRIC, MAP = 1e-2, 2e-3, 5e-2
MAPPED = 16
"""Images whose occlusion maps are compared."""


def embedded(name: str, checkpoint: Checkpoint, pixels: CachedPixels) -> EmbeddedSplit:
    """One split of the manifest in the checkpoint's precision."""
    params = load_params()
    task = heard(task_of(params), checkpoint.facts)
    prompts = embed_prompts(checkpoint, task)
    manifest = read_manifest(paths.MANIFEST)
    return embed_split(name, manifest, pixels, checkpoint, task, prompts, params.evaluate.batch_size)


def map_difference(checkpoint: Checkpoint, pixels: np.ndarray) -> float:
    """Of the occlusion maps (B, G, G, D) in bf16 to those in float32, relative to the norm of these."""
    images = torch.from_numpy(pixels)
    exact = occlusion_drops(checkpoint.model, images)
    with torch.autocast("cpu", torch.bfloat16):
        half = occlusion_drops(checkpoint.model, images)
    return float((half - exact).norm() / exact.norm())


def claims_of(exact: EmbeddedSplit, half: EmbeddedSplit) -> list[Claim]:
    """Largest distances, and the headline metrics' differences."""
    distances = [
        np.linalg.norm(getattr(half, name) - getattr(exact, name), axis=1).max()
        for name in ("image_embeds", "text_embeds")
    ]
    cosines = half.image_embeds @ half.text_embeds.T - exact.image_embeds @ exact.text_embeds.T
    claims = [
        Claim("largest distance of an image's embeddings", float(distances[0]), "<=", EMBEDDING),
        Claim("largest distance of a text's embeddings", float(distances[1]), "<=", EMBEDDING),
        Claim("largest difference of a cosine", float(np.abs(cosines).max()), "<=", EMBEDDING),
    ]
    params = load_params().evaluate
    before = headline_from_predictions(predictions_of(exact, params))
    after = headline_from_predictions(predictions_of(half, params))
    return claims + [
        Claim(f"difference of {name} ({before[name]:.4f})", abs(after[name] - before[name]), "<=", METRIC)
        for name in before
    ]


def main() -> None:
    """Embed twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    checkpoint = load_checkpoint(paths.BEST_MODEL)
    pixels = open_pixels(read_manifest(paths.MANIFEST), paths.CACHE_FACTS)
    exact = embedded(args.split, checkpoint, pixels)
    half = embedded(args.split, dataclasses.replace(checkpoint, tower_dtype=torch.bfloat16), pixels)
    maps = map_difference(checkpoint, pixels[exact.numbers[:MAPPED]])
    claims = [*claims_of(exact, half), Claim("relative difference of occlusion maps", maps, "<=", MAP)]
    conclude(claims, {"split": args.split, "rows": len(exact)}, args.output, "torch", "transformers")


if __name__ == "__main__":
    run_stage(main)
