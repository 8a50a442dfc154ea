"""The headline figures once more, on images that are shifted, turned, exposed otherwise, noisy, compressed, inverted.

The cached pixels are disturbed, after all preprocessing: local contrast normalisation and the correction of inverted
images, which would undo part of it on an original, do not help here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from knee_siglip.data.disturbance import DISTURBANCES, Disturbance
from knee_siglip.data.randomness import sample_keys
from knee_siglip.evaluation.split import IMAGES_AT_ONCE, EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.bootstrap import Interval, kappa_interval, mean_interval
from knee_siglip.metrics.retrieval import contrastive_credit, embedding_scores
from knee_siglip.metrics.zero_shot import grade_confusion, kappa_from_confusion
from knee_siglip.model.embedding import embed_pixels

IMAGES = 200
"""At most so many rows of the split, drawn by a fixed seed."""

SEED, STREAM = 0, 0

UNDISTURBED = ("undisturbed", "")

WORST = ("contrastive_accuracy", "quadratic_weighted_kappa")

Figures = dict[str, tuple[float, Interval | None]]
"""Name of a metric to its value and interval."""

Line = dict[str, str | float | None]


@dataclass(frozen=True)
class RobustnessReport:
    """figures: `robustness.*`; table: condition, level, metric, value, low, high, difference (to undisturbed)."""

    figures: dict[str, float]
    table: list[Line]


def robustness_report(split: EmbeddedSplit, data: EmbeddedData) -> RobustnessReport:
    """Every disturbance on the same rows; empty where `params.robustness` is off.

    The worst figures are those over all disturbances but inversion, which no reader would take for a usual image.
    """
    if not data.params.robustness:
        return RobustnessReport({}, [])
    rows = np.random.default_rng(SEED).permutation(len(split))[:IMAGES]
    chosen = _rows_of(split, np.sort(rows))
    before = _figures(chosen)
    table = _lines(*UNDISTURBED, before, before)
    worst: dict[str, float] = {}
    for disturbance in DISTURBANCES:
        after = _figures(replace(chosen, image_embeds=_embed(chosen, data, disturbance)))
        table += _lines(disturbance.condition, disturbance.level, after, before)
        if disturbance.condition != "inversion":
            for name in WORST:
                if name in after:
                    worst[name] = min(worst.get(name, np.inf), after[name][0])
    return RobustnessReport({f"robustness.worst_{name}": value for name, value in worst.items()}, table)


def _rows_of(split: EmbeddedSplit, rows: np.ndarray) -> EmbeddedSplit:
    return replace(
        split,
        rows=split.rows.iloc[rows].reset_index(drop=True),
        numbers=split.numbers[rows],
        image_embeds=split.image_embeds[rows],
        text_embeds=split.text_embeds[rows],
    )


def _embed(split: EmbeddedSplit, data: EmbeddedData, disturbance: Disturbance) -> np.ndarray:
    """(N, D) of the disturbed images."""

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(split), IMAGES_AT_ONCE):
            numbers = split.numbers[start : start + IMAGES_AT_ONCE]
            keys = sample_keys(SEED, STREAM, torch.from_numpy(numbers))
            yield disturbance.change(torch.from_numpy(data.pixels[numbers]), keys).numpy()

    return embed_pixels(data.checkpoint, batches())


def _figures(split: EmbeddedSplit) -> Figures:
    """Contrastive accuracy and, where there are grades, accuracy and kappa of the zero-shot grade."""
    scores = embedding_scores(split.image_embeds, split.text_embeds)
    credit = contrastive_credit(scores, split.text_ids, split.batch_size)
    figures = {"contrastive_accuracy": (credit.accuracy, mean_interval(credit.per_row, split.patients[credit.rows]))}
    predicted, patients = split.predicted[split.graded], split.patients[split.graded]
    if len(split.graded):
        right = (predicted == split.grades).astype(np.float64)
        kappa = float(kappa_from_confusion(grade_confusion(split.grades, predicted)))
        figures["accuracy"] = float(right.mean()), mean_interval(right, patients)
        figures["quadratic_weighted_kappa"] = kappa, kappa_interval(split.grades, predicted, patients)
    return {name: figure for name, figure in figures.items() if np.isfinite(figure[0])}


def _lines(condition: str, level: str, after: Figures, before: Figures) -> list[Line]:
    bounds = {
        name: (interval.low, interval.high) if interval else (None, None) for name, (_, interval) in after.items()
    }
    return [
        {
            "condition": condition,
            "level": level,
            "metric": name if name == "contrastive_accuracy" else f"zero_shot_kl.{name}",
            "value": value,
            "low": bounds[name][0],
            "high": bounds[name][1],
            "difference": value - before[name][0] if name in before else None,
        }
        for name, (value, _) in after.items()
    ]
