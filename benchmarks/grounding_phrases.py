"""python benchmarks/grounding_phrases.py [--split test] [--output FILE]

Do the maps of the default run, after `dvc repro`, show what a phrase names, or only where the model looks anyway? The
grounding is measured with each finding's own phrase, and with the phrase of every other finding in its place (mean over
these): what a method loses by that is what its maps owe to the phrase. Findings whose boxes are small are told apart
from those that fill the middle of the image, as a blob in the middle does.

And how often is a phrase "found" (explain/overlays.py): in images that have the finding, in those that have not, and
where the phrase is absurd, made of words that the training texts have? Shown for several margins, on validation
images, from which `MARGIN` was chosen, and on the split, which is judged at that one.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, conclude

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit, PromptEmbeds
from knee_siglip.evaluation.evaluate import EvaluateFiles, embed
from knee_siglip.evaluation.grounding import grounding_report
from knee_siglip.evaluation.regions import regions_of
from knee_siglip.explain.maps import occlusion_drops
from knee_siglip.explain.overlays import LEAST, MARGIN, enlarge
from knee_siglip.model.embedding import embed_texts, ensemble
from knee_siglip.pairs.batches import split_groups
from knee_siglip.params.files import load_params

FIGURES = ("cnr_signed", "pointing_game", "miou")
PHRASES = {
    "joint effusion": "effusion",
    "knee effusion": "effusion",
    "fracture of tibial plateau": "fracture",
    "fracture": "fracture",
    "loose body": "loose_body",
    "chondrocalcinosis": "chondrocalcinosis",
    "total knee arthroplasty": "arthroplasty",
    "arthroplasty": "arthroplasty",
    "varus angulation": "varus",
    "valgus angulation": "valgus",
}
ABSURD = (
    "loose total of the doubtful plateau",
    "angulation of the body",
    "severe normal abnormality",
    "total abnormality total",
    "medial medial medial",
    "normal fracture of normal body",
    "body of the joint of the compartment of the knee",
    "right plateau right total",
    "moderate body of angulation",
    "knee knee joint knee",
    "total loose compartment",
    "abnormality angulation abnormality",
)
PRESENT, ABSENT, NONSENSE = "with the finding", "without it", "absurd phrases"
MARGINS = (0.0, 0.5, MARGIN, 1.5, 2.0)
FOUND_IMAGES, IMAGES_AT_ONCE = 110, 22
IN_THE_MIDDLE = frozenset({"varus", "valgus", "arthroplasty"})
Table = list[dict[str, Any]]


def measure(split: EmbeddedSplit, data: EmbeddedData) -> tuple[Table, Table]:
    """Rows (finding, method, figures) with the right phrases, and with each wrong one."""
    names = sorted({region.finding for region in regions_of(split, data.pixels.transform)})
    normal = ensemble(split.prompts.grades[0])
    told = embed_texts(data.checkpoint, [name.replace("_", " ") for name in names])
    phrases = [
        split.prompts.findings.get(name, np.stack([text, normal])) for name, text in zip(names, told, strict=True)
    ]

    def rows(shift: int) -> Table:
        turned = {name: phrases[(place + shift) % len(names)] for place, name in enumerate(names)}
        prompts = PromptEmbeds(split.prompts.grades, turned)
        return [dict(row) for row in grounding_report(replace(split, prompts=prompts), data).findings]

    return rows(0), [row for shift in range(1, len(names)) for row in rows(shift)]


def found_rates(split: EmbeddedSplit, data: EmbeddedData) -> dict[float, dict[str, float]]:
    """By margin: share of images, drawn by a fixed seed, in which a phrase is found, mean over the phrases."""
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:FOUND_IMAGES])
    model, scale = data.checkpoint.model, split.logit_scale
    pixels = [torch.from_numpy(data.pixels[numbers]) for numbers in split_groups(split.numbers[rows], IMAGES_AT_ONCE)]
    drops = np.concatenate([occlusion_drops(model, part.to(model.device)).cpu().numpy() for part in pixels])
    texts = [*PHRASES, *ABSURD, split.task.normal]
    *phrases, normal = embed_texts(data.checkpoint, texts)
    findings = [{str(each.get("finding")) for each in json.loads(cell)} for cell in split.rows["findings"].iloc[rows]]
    rates: dict[float, dict[str, list[float]]] = {margin: {} for margin in MARGINS}
    for text, phrase in zip(texts, phrases, strict=False):
        margins = scale * split.image_embeds[rows] @ (phrase - normal)
        heats = scale * drops @ (phrase - normal)
        peaks = np.array([enlarge(heat, data.pixels.image_size).max() for heat in heats])
        has = np.array([PHRASES.get(text) in found for found in findings])
        kinds = {NONSENSE: ~has} if text in ABSURD else {PRESENT: has, ABSENT: ~has}
        for margin in MARGINS:
            found = (margins >= margin) & (peaks >= LEAST)
            for kind, asked in kinds.items():
                if asked.any():
                    rates[margin].setdefault(kind, []).append(float(found[asked].mean()))
    return {margin: {kind: float(np.mean(shares)) for kind, shares in kinds.items()} for margin, kinds in rates.items()}


def mean(rows: Sequence[dict[str, Any]], method: str, figure: str, local: bool = False) -> float:
    """Over findings, each counting alike; `local`: over those with small boxes."""
    chosen = [row for row in rows if row["method"] == method and not (local and row["finding"] in IN_THE_MIDDLE)]
    return float(np.mean([row[figure] for row in chosen if figure in row]))


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    os.environ["KNEE_SIGLIP_STORE"] = str(paths.store_root())
    report = paths.EVALUATION_REPORT
    files = EvaluateFiles(paths.MANIFEST, paths.CACHE_FACTS, paths.BEST_MODEL, paths.BACKBONES, report)
    data = embed(load_params(), files)
    right, wrong = measure(data.splits[args.split], data)
    facts: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in right):
        facts[method] = {
            figure: {
                "right": mean(right, method, figure),
                "wrong": mean(wrong, method, figure),
                "local findings": mean(right, method, figure, local=True),
            }
            for figure in FIGURES
        }
        print(f"{method}: {facts[method]}")
    found = {name: found_rates(data.splits[name], data) for name in ("val", args.split)}
    for name, rates in found.items():
        print(f"found, {name}, by margin: {rates}")
    at_margin, without = found[args.split][MARGIN], found[args.split][0.0]
    lost = {name: facts[name]["cnr_signed"]["right"] - facts[name]["cnr_signed"]["wrong"] for name in facts}
    more = lost["occlusion"] - lost["gradient"]  # no ratio: a gradient map may lose nothing
    pointing = {name: facts[name]["pointing_game"]["local findings"] for name in facts}
    above = pointing["occlusion"] - pointing["centre_prior"]
    claims = [
        Claim("signed contrast lost by a wrong phrase, occlusion less gradient", more, ">=", 0.18),
        Claim("occlusion: pointing game on local findings above the centre prior's", above, ">=", 0.2),
        Claim("phrase found in images with the finding", at_margin[PRESENT], ">=", 0.9),
        Claim("phrase found in images without it / without a margin", at_margin[ABSENT] / without[ABSENT], "<=", 0.7),
        Claim("absurd phrase found / without a margin", at_margin[NONSENSE] / without[NONSENSE], "<=", 0.8),
    ]
    conclude(claims, facts | {"found": found}, args.output, "torch", "transformers")


if __name__ == "__main__":
    run_stage(main)
