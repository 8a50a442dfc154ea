"""python benchmarks/dense_alignment.py [--seeds 0 1 2] [--steps N] [--output FILE]     (an hour on one core)

Would patches that are trained to match phrases show findings better than hiding places does? After `dvc repro`, the
default recipe is trained three ways with each seed, on one core with OMP_NUM_THREADS=1 (what is trained and measured
stays in build/dense_alignment/, so that an interrupted run goes on):

- `default`: its maps are occlusion, as everywhere in this project (49 forward passes an image);
- `patches in the loss`: a second loss beside the first, between each text and the patches that it attends to, as in
  RadZero (arXiv:2504.07416). The map is a patch's cosine with the phrase: one forward pass;
- `pooled patches`: attention pooling over the patches is added to the CLS token before the projection's norm, after
  dino.txt (arXiv:2412.16334). The map is what each patch adds to the cosine: one forward pass.

Measured on the test images with boxes, local findings alone (those that fill the middle are told by a blob there), each
finding counting alike: pointing game and mean IoU. Differences are from the default's occlusion and from the blob, mean
over the seeds, with intervals by patient. Beside them kappa and recall@1 of each model.

A dense way would replace occlusion if its maps pointed better than occlusion and the blob do, with intervals above 0,
and neither kappa nor recall fell. Claimed is what is decided (docs/decisions.md): none does, so that occlusion stays.
"""

import argparse
import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from claims import Claim, conclude
from grounding_phrases import IN_THE_MIDDLE
from torch import Tensor, nn
from torch.nn import functional as F

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit, embed_prompts, embed_split
from knee_siglip.evaluation.grounding import finding_directions
from knee_siglip.evaluation.measurement import measure_headline
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.evaluation.regions import regions_of
from knee_siglip.explain.maps import occlusion_drops, patch_embeds
from knee_siglip.explain.overlays import enlarge
from knee_siglip.metrics.bootstrap import interval_of, value_of
from knee_siglip.metrics.grounding import centre_prior, finding_mean_statistic, grounding_metrics
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.model.training_facts import heard
from knee_siglip.pairs.batches import Batch, PairDataset, split_groups
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.manifest import number_groups, read_manifest
from knee_siglip.tables.text import tokenize
from knee_siglip.task.task import Task
from knee_siglip.training.encoder import LocalBatch
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.monitoring.facts import training_facts
from knee_siglip.training.run import choose_length
from knee_siglip.training.trainer import Trainer

DEFAULT, IN_LOSS, POOLED = "default", "patches in the loss", "pooled patches"
OCCLUSION, BLOB = "occlusion", "blob in the middle"
SHARPNESS = 0.1
"""Temperature at which a text attends to the patches; 0.03 was no better with one seed."""
FIGURES = ("pointing_game", "miou")
MODEL_FIGURES = (
    "zero_shot_kl.quadratic_weighted_kappa",
    "retrieval.image_to_text.recall_at_1",
    "retrieval.text_to_image.recall_at_1",
    "contrastive_accuracy",
)
IMAGES_AT_ONCE = 32
RESULTS = Path("build/dense_alignment")


class PooledModel(KneeRadDinoSigLIPModel):
    """An image's embedding is that of its CLS token plus that of its patches, weighted by a learnt attention."""

    def __init__(self, like: KneeRadDinoSigLIPModel) -> None:
        super().__init__(like.config)
        self.load_state_dict(like.state_dict())
        self.attention = nn.Linear(self.vision.width, 1)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised grey (B, 1, S, S) to (B, D)."""
        cls, patches = self.parts(pixel_values)
        return F.normalize(cls + patches.sum(dim=1), dim=-1)

    def parts(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """What the CLS token (B, D) and each patch (B, P, D) add to the embedding before it is normalised."""
        tokens = self.vision.tokens(pixel_values.expand(-1, 3, -1, -1))
        weights = self.attention(tokens[:, 1:]).softmax(dim=1)
        projected = self.visual_projection(tokens)
        return projected[:, 0], weights * projected[:, 1:]

    @torch.no_grad()
    def patch_shares(self, pixels: Tensor) -> Tensor:
        """(B, S, S) to (B, G, G, D), whose products with a phrase add up to the patches' part of the cosine."""
        cls, patches = self.parts(self.normalise_grey(pixels))
        side = round(patches.shape[1] ** 0.5)
        return (patches / (cls + patches.sum(dim=1)).norm(dim=-1)[:, None, None]).unflatten(1, (side, side))


class PatchTrainer(Trainer):
    """Adds the loss between texts and the patches that they attend to. All in one piece, on one device."""

    def train_step(self, batch: Batch, group: np.ndarray) -> None:
        """The gradients of both losses meet in the parameters, before the step of the usual one."""
        local = LocalBatch(batch, len(group), len(group), self.seed, self.step)
        pixels, input_ids, places, *_ = self.encoder.inputs(local, slice(0, len(group)))
        tokens = self.model.vision.tokens(self.model.normalise_pixels(pixels))[:, 1:]
        patches = self.model.project_image_features(tokens)
        texts = self.model.get_text_features(input_ids)
        attention = (torch.einsum("bpd,ud->bup", patches, texts) / SHARPNESS).softmax(dim=-1)
        attended = F.normalize(attention @ patches, dim=-1)  # (B, U, D): what each text looks at in each image
        cosines = torch.einsum("bud,ud->bu", attended, texts)[:, places]
        logits = self.model.logit_scale.exp() * cosines + self.model.logit_bias
        ids = local.positive_ids(self.params.multi_positive)
        positive = (ids[:, None] == ids[None]).any(dim=-1)
        (F.softplus(torch.where(positive, -logits, logits)).sum() / len(group)).backward()
        super().train_step(batch, group)


@dataclass(frozen=True)
class Material:
    """What all ways train and are measured on."""

    params: Params
    pixels: CachedPixels
    manifest: pd.DataFrame

    @property
    def task(self) -> Task:
        """The questions of evaluation: without prompts that hold words which the training has not."""
        return heard(task_of(self.params), training_facts(self.manifest, {"verdict": "learned", "signs": []}))

    def embed_test(self, checkpoint: Checkpoint) -> EmbeddedSplit:
        """The test split, as evaluation embeds it."""
        prompts, batch = embed_prompts(checkpoint, self.task), self.params.evaluate.batch_size
        return embed_split("test", self.manifest, self.pixels, checkpoint, self.task, prompts, batch)

    def pairs(self, split: str, checkpoint: Checkpoint) -> PairDataset:
        """Pairs of a split, as the train stage makes them."""
        rows = np.flatnonzero((self.manifest["split"] == split).to_numpy())
        table = self.manifest.iloc[rows]
        text_ids, texts = pd.factorize(table["text"])
        input_ids = tokenize(
            checkpoint.tokenizer, texts.tolist(), checkpoint.max_text_length, checkpoint.position_count
        )
        return PairDataset(self.pixels, rows, input_ids, text_ids, number_groups(table, "study_id"))


def train(way: str, seed: int, material: Material) -> Checkpoint:
    """The weights that were best on val, as the train stage keeps them."""
    params = material.params
    torch.manual_seed(seed)
    model, tokenizer = build_model(paths.BACKBONES, params.model, params.train.batch_size)
    model = PooledModel(model) if way == POOLED else model
    checkpoint = Checkpoint(model, tokenizer, material.pixels.transform, params.to_dict())
    best: dict[str, Tensor] = {}
    trainer = (PatchTrainer if way == IN_LOSS else Trainer)(
        model,
        material.pairs("train", checkpoint),
        material.pairs("val", checkpoint),
        params.train,
        seed=seed,
        device=torch.device("cpu"),
        log=lambda _, __: None,
        on_best=lambda _: best.update(copy.deepcopy(model.state_dict())),
        guard=FiniteGuard(0, None, lambda _: []),
    )
    trainer.fit()
    model.load_state_dict(best)
    model.eval()
    return checkpoint


@dataclass(frozen=True)
class Measured:
    """figures: of `MODEL_FIGURES`. findings, patients: of each region. scores: of each region, by a map's name."""

    figures: dict[str, float]
    findings: list[str]
    patients: list[int]
    scores: dict[str, list[dict[str, float]]]


def measure(way: str, checkpoint: Checkpoint, material: Material) -> Measured:
    """Headline metrics of the test split, and how the way's maps, and the blob, point at the local findings."""
    split, model, side = material.embed_test(checkpoint), checkpoint.model, material.pixels.image_size
    headline = measure_headline(predictions_of(split, material.params.evaluate))
    regions = [each for each in regions_of(split, material.pixels.transform) if each.finding not in IN_THE_MIDDLE]
    data = EmbeddedData(material.params.evaluate, {"test": split}, checkpoint, material.pixels)
    directions = finding_directions(split, data, {region.finding for region in regions})
    scores: list[dict[str, float]] = []
    for group in split_groups(np.arange(len(regions)), IMAGES_AT_ONCE):
        chosen = [regions[place] for place in group]
        pixels = torch.from_numpy(material.pixels[split.numbers[[region.row for region in chosen]]])
        for region, embeds in zip(chosen, embed_places(way, model, pixels), strict=True):
            heat = (embeds @ torch.from_numpy(directions[region.finding])).numpy()
            scores.append(grounding_metrics(enlarge(heat, side), region.mask(side)))
    blob = [grounding_metrics(centre_prior(side), region.mask(side)) for region in regions]
    return Measured(
        {name: headline[name] for name in MODEL_FIGURES},
        [region.finding for region in regions],
        [int(split.patients[region.row]) for region in regions],
        {way: scores, BLOB: blob},
    )


@torch.no_grad()
def embed_places(way: str, model: KneeRadDinoSigLIPModel, pixels: Tensor) -> Tensor:
    """(B, S, S) to (B, G, G, D), whose products with a phrase are the way's maps."""
    if isinstance(model, PooledModel):
        return model.patch_shares(pixels)
    return occlusion_drops(model, pixels) if way == DEFAULT else patch_embeds(model, pixels)


def mean_scores(runs: Sequence[list[dict[str, float]]], name: str) -> np.ndarray:
    """(N,) of each region, mean over the runs' models."""
    return np.array([[metrics.get(name, np.nan) for metrics in run] for run in runs]).mean(axis=0)


def compare(values: np.ndarray, others: np.ndarray, findings: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Value, and its difference from the others with its interval; (N,) of the regions."""
    change = finding_mean_statistic(values - others, findings)
    interval = interval_of(change, patients)
    assert interval is not None
    own = value_of(finding_mean_statistic(values, findings), len(values))
    return {
        "value": own,
        "difference": value_of(change, len(values)),
        "low": interval.low,
        "high": interval.high,
    }


def tabulate(runs: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Of each way the models' figures, and its maps against the default's and the blob."""
    first = runs[DEFAULT][0]
    findings, patients = np.array(first.findings), np.array(first.patients)
    facts: dict[str, Any] = {"regions": len(findings), "patients": len(np.unique(patients))}
    for way, measured in runs.items():
        others = {BLOB: [first.scores[BLOB]]}
        if way != DEFAULT:
            others[OCCLUSION] = [each.scores[DEFAULT] for each in runs[DEFAULT]]
        own = [each.scores[way] for each in measured]
        facts[way] = {metric: [each.figures[metric] for each in measured] for metric in MODEL_FIGURES}
        facts[way]["maps"] = {
            figure: {
                other: compare(mean_scores(own, figure), mean_scores(theirs, figure), findings, patients)
                for other, theirs in others.items()
            }
            for figure in FIGURES
        }
    return facts


def judge(facts: Mapping[str, Any]) -> list[Claim]:
    """A dense way does not surely beat occlusion and the blob: the least of what is sure of its gains."""
    claims = []
    for way in (IN_LOSS, POOLED):
        least = min(found["low"] for figure in FIGURES for found in facts[way]["maps"][figure].values())
        claims.append(Claim(f"{way}: least lower end of what its maps gain on occlusion and the blob", least, "<=", 0))
    return claims


def resume(way: str, seed: int, material: Material, folder: Path) -> Measured:
    """What one way measures with one seed, from an earlier run if it is there."""
    file = folder / f"{way} {seed} {material.params.train.steps}.json"
    if not file.is_file():
        checkpoint = train(way, seed, material)
        file.write_text(json.dumps(asdict(measure(way, checkpoint, material))), encoding="utf-8")
    return Measured(**json.loads(file.read_text(encoding="utf-8")))


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="in place of train.steps, to try this script")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    os.environ["KNEE_SIGLIP_STORE"] = str(paths.store_root())
    params, manifest = load_params(), read_manifest(paths.MANIFEST)
    length = choose_length(params.train, manifest[manifest["split"] == "train"])
    if args.steps:
        length = length.model_copy(update={"steps": args.steps})
    params = params.model_copy(update={"train": length})
    material = Material(params, open_pixels(manifest, paths.CACHE_FACTS), manifest)
    RESULTS.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Measured]] = {DEFAULT: [], IN_LOSS: [], POOLED: []}
    for seed, way in ((seed, way) for seed in args.seeds for way in runs):
        runs[way].append(resume(way, seed, material, RESULTS))
        print(f"seed {seed}, {way}: {runs[way][-1].figures}", flush=True)
    facts = {"seeds": args.seeds, "steps": length.steps} | tabulate(runs)
    for way in runs:
        print(f"{way}: {facts[way]}")
    conclude(judge(facts), facts, args.output, "torch")


if __name__ == "__main__":
    run_stage(main)
