"""The headline metrics on disturbed images: shifted, turned, exposed otherwise, noisy, compressed, inverted.

The cached pixels are disturbed, after preprocessing: local contrast normalisation and the correction of inversion,
which would undo part of it on an original, do not help here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import Estimate, headline_estimates, headlines
from knee_siglip.evaluation.predictions import predictions_of
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

Estimates = dict[str, Estimate]

Line = dict[str, str | float | None]


@dataclass(frozen=True)
class RobustnessReport:
    """metrics: `robustness.*`; table: condition, level, metric, value, low, high, difference (to undisturbed)."""

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
    before = _estimates(chosen, data)
    table = _lines(*UNDISTURBED, before, before)
    worst: dict[str, float] = {}
    for disturbance in DISTURBANCES:
        after = _estimates(replace(chosen, image_embeds=_embed(chosen, data, disturbance)), data)
        table += _lines(disturbance.condition, disturbance.level, after, before)
        if disturbance.condition != "inversion":
            for metric, estimate in after.items():
                if (name := _short(metric)) in WORST:
                    worst[name] = min(worst.get(name, np.inf), estimate.value)
    return RobustnessReport({f"robustness.worst_{name}": value for name, value in worst.items()}, table)


def _embed(split: EmbeddedSplit, data: EmbeddedData, disturbance: Disturbance) -> np.ndarray:
    """(N, D) of the disturbed images."""
    at_once = images_at_once(data.checkpoint.model.device)

    def batches() -> Iterator[np.ndarray]:
        for numbers in split_groups(split.numbers, at_once):
            keys = sample_keys(SEED, STREAM, torch.from_numpy(numbers))
            yield disturbance.change(torch.from_numpy(data.pixels[numbers]), keys).numpy()

    return embed_pixels(data.checkpoint, batches())


def _estimates(split: EmbeddedSplit, data: EmbeddedData) -> Estimates:
    measured = [name for name in headlines(split.task.labels) if _short(name) in MEASURED]
    return headline_estimates(predictions_of(split, data.params), names=measured)


def _short(metric: str) -> str:
    """`accuracy` for `zero_shot_kl.accuracy`."""
    return metric.rsplit(".", 1)[-1]


def _lines(condition: str, level: str, after: Estimates, before: Estimates) -> list[Line]:
    return [
        {
            "condition": condition,
            "level": level,
            "metric": name,
            "value": estimate.value,
            "low": estimate.interval.low if estimate.interval else None,
            "high": estimate.interval.high if estimate.interval else None,
            "difference": estimate.value - before[name].value if name in before else None,
        }
        for name, estimate in after.items()
    ]
