"""Where the model looks: maps of findings over images, against the boxes that were drawn around them.

Each finding is looked for with its prompts in params.yaml, where it has some, else by its name; and against images
without it, so that the map shows what tells the two apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from knee_siglip.evaluation.case_maps import MISTAKES, Question, case_map, why_not_right, worst_grades
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import interval_metrics
from knee_siglip.evaluation.regions import Region, regions_of
from knee_siglip.explain.maps import METHODS, Method, phrase_maps
from knee_siglip.explain.overlays import draw_overlay, enlarge
from knee_siglip.metrics.bootstrap import interval_of, value_of
from knee_siglip.metrics.grounding import centre_prior, finding_mean_statistic, grounding_metrics
from knee_siglip.model.device import images_at_once
from knee_siglip.model.embedding import embed_texts, ensemble
from knee_siglip.pairs.batches import split_groups

SHOWN: Method = "occlusion"
"""The method of the pictures: with another finding's phrase its maps change most, see docs/metrics.md."""

CENTRE_PRIOR = "centre_prior"

OVERLAYS = 8

SEED = 0

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class GroundingReport:
    """metrics: `grounding.<method>.<metric>`, means over findings. table: these with intervals, a row for each method.

    findings: a row for each finding and method, with the number of its images. overlays: (title, JPEG file).
    """

    metrics: dict[str, float]
    table: list[Row]
    findings: list[Row]
    overlays: list[tuple[str, bytes]]
    cases: list[dict[str, Any]]


def grounding_report(split: EmbeddedSplit, data: EmbeddedData) -> GroundingReport:
    """Maps of at most `params.grounding.images` images with boxes, drawn by a fixed seed.

    Where there are no boxes, pictures alone: each image with its own text. Empty where `images` is 0.

    Raises:
        UserError: a box cannot be read.
    """
    limit = data.params.grounding.images
    if not limit:
        return GroundingReport({}, [], [], [], [])
    regions = regions_of(split, data.pixels.transform)
    cases = _mistaken_grades(split, data)
    if not regions:
        return GroundingReport({}, [], [], _text_overlays(split, data, min(limit, OVERLAYS)), cases)
    rows = _draw(np.unique([region.row for region in regions]), limit)
    regions = [region for region in regions if region.row in set(rows.tolist())]
    questions = _questions(split, data, regions)
    maps = {method: list(_maps(split, data, questions, method)) for method in METHODS}
    scores = _score(regions, maps, data.pixels.image_size)
    findings = _by_finding(regions, scores)
    means = _means(findings)
    patients = split.patients[[region.row for region in regions]]
    metrics = {
        f"grounding.{row['method']}.{name}": float(value)
        for row in means
        for name, value in row.items()
        if name != "method"
    }
    metrics |= {"grounding.images": len(rows), "grounding.patients": len(np.unique(patients))}
    table = [{**row, **_intervals(str(row["method"]), scores, regions, patients)} for row in means]
    overlays = _region_overlays(split, data, regions, questions, maps[SHOWN])
    cases += [case_map(split, data, *asked) for asked in zip(questions, maps[SHOWN], strict=True)]
    return GroundingReport(metrics, table, findings, overlays, cases)


def _mistaken_grades(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, Any]]:
    """Of the worst grades, what spoke for them."""
    questions = [why_not_right(split, row) for row in worst_grades(split, MISTAKES)]
    heats = _maps(split, data, questions, SHOWN)
    return [case_map(split, data, *asked) for asked in zip(questions, heats, strict=True)]


def _draw(rows: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:count])


def finding_directions(split: EmbeddedSplit, data: EmbeddedData, names: set[str]) -> dict[str, np.ndarray]:
    """(D,) of each finding: its prompts' embedding less that of the prompts against it."""
    known = {name: split.prompts.findings[name] for name in sorted(names & set(split.prompts.findings))}
    unknown = sorted(names - set(known))
    texts = embed_texts(data.checkpoint, [name.replace("_", " ") for name in unknown])
    graded = bool(split.task.labels)
    normal = ensemble(split.prompts.grades[0]) if graded else embed_texts(data.checkpoint, [split.task.normal])[0]
    return {name: positive - negative for name, (positive, negative) in known.items()} | {
        name: text - normal for name, text in zip(unknown, texts, strict=True)
    }


def _questions(split: EmbeddedSplit, data: EmbeddedData, regions: Sequence[Region]) -> list[Question]:
    """Where each region's finding is seen."""
    directions = finding_directions(split, data, {region.finding for region in regions})
    prompts = {name: finding.negative[0] for name, finding in split.task.findings.items()}
    return [
        Question(region.row, region.finding.replace("_", " "), directions[region.finding], against)
        for region in regions
        for against in [prompts.get(region.finding, split.task.normal)]
    ]


def _maps(
    split: EmbeddedSplit, data: EmbeddedData, questions: Sequence[Question], method: Method
) -> Iterator[np.ndarray]:
    """(S, S) for each question, in cosines; those of one row stand together."""
    checkpoint, window = data.checkpoint, data.params.grounding.window
    device = checkpoint.model.device
    wanted: dict[int, list[np.ndarray]] = {}
    for question in questions:
        wanted.setdefault(question.row, []).append(question.direction)
    for chunk in split_groups(np.array(list(wanted)), images_at_once(device)):
        pixels = torch.from_numpy(data.pixels[split.numbers[chunk]]).to(device)
        phrases = [torch.from_numpy(np.stack(wanted[row])).to(device) for row in chunk.tolist()]
        for maps in phrase_maps(checkpoint.model, pixels, phrases, method, window, checkpoint.vision_dtype):
            for patches in maps.cpu().numpy():
                yield enlarge(patches, data.pixels.image_size)


def _score(
    regions: Sequence[Region], maps: dict[Method, list[np.ndarray]], side: int
) -> dict[str, list[dict[str, float]]]:
    """Of each method the metrics of every region."""
    masks = [region.mask(side) for region in regions]
    everything: list[tuple[str, list[np.ndarray]]] = [*maps.items(), (CENTRE_PRIOR, [centre_prior(side)] * len(masks))]
    return {
        method: [grounding_metrics(heat, mask) for heat, mask in zip(heats, masks, strict=True)]
        for method, heats in everything
    }


def _by_finding(regions: Sequence[Region], scores: dict[str, list[dict[str, float]]]) -> list[Row]:
    """A row for each finding and method: means over its images."""
    rows: list[Row] = []
    for finding in sorted({region.finding for region in regions}):
        places = [place for place, region in enumerate(regions) if region.finding == finding]
        for method, metrics in scores.items():
            found = _mean([metrics[place] for place in places])
            rows.append({"finding": finding, "images": len(places), "method": method, **found})
    return rows


def _intervals(
    method: str, scores: dict[str, list[dict[str, float]]], regions: Sequence[Region], patients: np.ndarray
) -> dict[str, float]:
    """Of each metric of a method `_ci_low` and `_ci_high`, and `_over_prior`: its difference from the blob's, paired.

    Patients are resampled with all their regions. Without enough of them there are none.
    """
    findings = np.array([region.finding for region in regions])
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in scores[method] for name in metrics):
        own, blob = (
            np.array([metrics.get(name, np.nan) for metrics in scores[each]]) for each in (method, CENTRE_PRIOR)
        )
        for key, values in {name: own, f"{name}_over_prior": own - blob}.items():
            statistic = finding_mean_statistic(values, findings)
            if key == name or method != CENTRE_PRIOR:
                interval = interval_of(statistic, patients)
                difference = {key: value_of(statistic, len(values))} if key != name else {}
                found |= difference | interval_metrics(key, interval, statistic.units(patients))
    return found


def _means(findings: Sequence[Row]) -> list[Row]:
    """Over findings, each counting alike, as on MS-CXR: a row for each method."""
    by_method: dict[str, list[dict[str, float]]] = {}
    for row in findings:
        metrics = {name: float(value) for name, value in row.items() if name not in ("finding", "images", "method")}
        by_method.setdefault(str(row["method"]), []).append(metrics)
    return [{"method": method, **_mean(metrics)} for method, metrics in by_method.items()]


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over those that have it."""
    names = dict.fromkeys(name for values in metrics for name in values)
    return {name: float(np.mean([values[name] for values in metrics if name in values])) for name in names}


def _region_overlays(
    split: EmbeddedSplit,
    data: EmbeddedData,
    regions: Sequence[Region],
    questions: Sequence[Question],
    maps: Sequence[np.ndarray],
) -> list[tuple[str, bytes]]:
    """One image of each finding, then a second one ..., as far as `OVERLAYS` goes; no image twice while it goes."""
    names = pd.Series([region.finding for region in regions], name="finding")
    in_turns = names.to_frame().assign(turn=names.groupby(names).cumcount()).sort_values(["turn", "finding"])
    return [
        (
            f"{questions[place].title}: {split.rows['img_path'].iloc[regions[place].row]}",
            _overlay(split, data, questions[place], maps[place], regions[place].boxes),
        )
        for place in in_turns.index[:OVERLAYS]
    ]


def _text_overlays(split: EmbeddedSplit, data: EmbeddedData, count: int) -> list[tuple[str, bytes]]:
    """Images with their own text, of which nobody knows where it should be seen."""
    normal = embed_texts(data.checkpoint, [split.task.normal])[0]
    rows = _draw(np.arange(len(split)), count).tolist()
    questions = [Question(row, split.texts[row], split.text_embeds[row] - normal, split.task.normal) for row in rows]
    return [
        (
            f"{split.rows['img_path'].iloc[asked.row]}, its own text, no boxes known: {asked.title}",
            _overlay(split, data, asked, heat, np.zeros((0, 4))),
        )
        for asked, heat in zip(questions, _maps(split, data, questions, SHOWN), strict=True)
    ]


def _overlay(
    split: EmbeddedSplit, data: EmbeddedData, question: Question, heat: np.ndarray, boxes: np.ndarray
) -> bytes:
    pixels = np.asarray(data.pixels[split.numbers[[question.row]]])[0]
    missing = bool(question.missing_reason(split, heat))
    return draw_overlay(pixels, split.logit_scale * heat, boxes, missing=missing)
