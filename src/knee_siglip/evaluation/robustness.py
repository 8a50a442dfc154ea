"""The headline metrics on disturbed images: shifted, turned, exposed otherwise, noisy, compressed, inverted.

The cached pixels are disturbed, after preprocessing: local contrast normalisation and the correction of inversion,
which would undo part of it on an original, do not help here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import headlines
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.metrics.bootstrap import resample, value_of
from knee_siglip.metrics.intervals import percentile_interval
from knee_siglip.metrics.significance import holm_adjusted, normal_p_value
from knee_siglip.model.device import images_at_once
from knee_siglip.model.embedding import embed_pixels
from knee_siglip.pairs.batches import split_groups
from knee_siglip.pairs.disturbance import DISTURBANCES, Disturbance
from knee_siglip.pairs.randomness import sample_keys

IMAGES = 200
"""At most so many rows of the split, drawn by a fixed seed."""

SEED, STREAM = 0, 0

UNDISTURBED = ("undisturbed", "")

MEASURED = ("contrastive_accuracy", "accuracy", "quadratic_weighted_kappa")
"""The headline metrics whose names are these, those of the grading behind their family's."""

WORST = ("contrastive_accuracy", "quadratic_weighted_kappa")
"""robustness.worst_<name>: the lowest value of the metric."""

Line = dict[str, str | float | None]


@dataclass(frozen=True)
class RobustnessReport:
    """metrics: `robustness.*`.

    table: condition, level, metric, value, low, high, difference (to undisturbed, of the same images) with
    difference_low, difference_high and p_holm (of no difference, adjusted for all rows), the last three empty where
    there are too few patients.
    """

    metrics: dict[str, float]
    table: list[Line]


def robustness_report(split: EmbeddedSplit, data: EmbeddedData) -> RobustnessReport:
    """Every disturbance on the same rows; empty where `params.robustness` is off.

    The worst values are those over all disturbances but inversion, which no reader would take for a usual image.
    """
    if not data.params.robustness:
        return RobustnessReport({}, [])
    rows = np.random.default_rng(SEED).permutation(len(split))[:IMAGES]
    rows = np.sort(rows)
    chosen = replace(
        split,
        rows=split.rows.iloc[rows].reset_index(drop=True),
        numbers=split.numbers[rows],
        image_embeds=split.image_embeds[rows],
        text_embeds=split.text_embeds[rows],
    )
    before = predictions_of(chosen, data.params)
    table = _lines(*UNDISTURBED, before, before, chosen)
    for disturbance in DISTURBANCES:
        disturbed = replace(chosen, image_embeds=_embed(chosen, data, disturbance))
        table += _lines(
            disturbance.condition, disturbance.level, predictions_of(disturbed, data.params), before, chosen
        )
    tested = [line for line in table if line["p_holm"] is not None]
    for line, p in zip(tested, holm_adjusted([float(line["p_holm"] or 0) for line in tested]), strict=True):
        line["p_holm"] = p
    worst: dict[str, float] = {}
    for line in table:
        if line["condition"] not in (UNDISTURBED[0], "inversion") and (name := _short(str(line["metric"]))) in WORST:
            worst[name] = min(worst.get(name, np.inf), float(line["value"] or 0))
    return RobustnessReport({f"robustness.worst_{name}": value for name, value in worst.items()}, table)


def _embed(split: EmbeddedSplit, data: EmbeddedData, disturbance: Disturbance) -> np.ndarray:
    """(N, D) of the disturbed images."""
    at_once = images_at_once(data.checkpoint.model.device)

    def batches() -> Iterator[np.ndarray]:
        for numbers in split_groups(split.numbers, at_once):
            keys = sample_keys(SEED, STREAM, torch.from_numpy(numbers))
            yield disturbance.change(torch.from_numpy(data.pixels[numbers]), keys).numpy()

    return embed_pixels(data.checkpoint, batches())


def _short(metric: str) -> str:
    """`accuracy` for `zero_shot_kl.accuracy`."""
    return metric.rsplit(".", 1)[-1]


def _lines(condition: str, level: str, table: pd.DataFrame, before: pd.DataFrame, split: EmbeddedSplit) -> list[Line]:
    """Of each metric a line; the difference is paired: each resample draws the same patients of both tables."""
    known = headlines(split.task.labels)
    names = [name for name in known if _short(name) in MEASURED]
    lines: list[Line] = []
    for name in names:
        after, earlier = known[name](table), known[name](before)
        value, base = value_of(after, len(table)), value_of(earlier, len(before))
        if not np.isfinite(value):
            continue
        drawn, drawn_before = resample([after, earlier], split.patients)
        interval, change, p = after.interval(drawn, split.patients), None, None
        if interval is not None and condition != UNDISTURBED[0]:
            differences = (drawn - drawn_before)[np.isfinite(drawn - drawn_before)]
            change, p = percentile_interval(differences), normal_p_value(value - base, differences)
        lines.append(
            {
                "condition": condition,
                "level": level,
                "metric": name,
                "value": value,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "difference": value - base,
                "difference_low": change.low if change else None,
                "difference_high": change.high if change else None,
                "p_holm": p,
            }
        )
    return lines
