"""Metrics of one embedded split, by dotted names. A value that is undefined for this split is left out."""

import json
from collections.abc import Sequence

import numpy as np
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import interval_metrics
from knee_siglip.metrics.bootstrap import kappa_statistic, mean_statistic, resample
from knee_siglip.metrics.expectation import expected_contrastive_accuracy
from knee_siglip.metrics.grading import (
    agreement_metrics,
    grade_metrics,
    predicted_grades,
    ranking_areas,
    zero_shot_metrics,
)
from knee_siglip.metrics.intervals import percentile_interval
from knee_siglip.metrics.matching.retrieval import (
    contrastive_accuracy,
    contrastive_credit,
    perfect_reader_scores,
    retrieval_metrics,
    shuffled_batches,
)
from knee_siglip.metrics.matching.similarity import cosine_scores
from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.tables.ids import UNIT_COUNTS
from knee_siglip.tables.manifest import ALTERNATIVES_COLUMN
from knee_siglip.tables.text import normalise_text

Metrics = dict[str, float]

OF_PROMPTS = ("accuracy", "quadratic_weighted_kappa")
"""Metrics of each single prompt."""


def count_rows(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Sample sizes: `patients` are the known ones, beside them the studies and images that stand for unknown ones."""
    units = {UNIT_COUNTS[unit]: count for unit, count in split.units.counts.items() if count or unit == "patient"}
    return {
        "rows": len(split),
        **units,
        "distinct_texts": len(np.unique(split.text_ids)),
        "graded_rows": len(split.graded),
    }


def measure_loss(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Mean sigmoid loss over the batches of the contrastive accuracy; what is right there is a positive in any case."""
    images, texts = torch.from_numpy(split.image_embeds), torch.from_numpy(split.text_embeds)
    match_ids = torch.from_numpy(np.stack([split.text_ids, split.study_ids], axis=1))
    scale, bias = torch.tensor(split.logit_scale), torch.tensor(split.logit_bias)
    batches = shuffled_batches(len(split), split.batch_size)
    losses = [sigmoid_loss(images[rows], texts[rows], scale, bias, match_ids[rows]).item() for rows in batches]
    return {"loss": float(np.mean(losses))}


def measure_contrastive(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """The reference's contrastive accuracy, in which only the pair itself is correct; the other is a headline metric.

    `contrastive_accuracy_expected` is the headline metric over all groups of rows, not those of one shuffle.
    `contrastive_batch_size` is smaller than asked for in a small split.
    """
    return {
        "contrastive_accuracy_strict": contrastive_accuracy(
            split.image_embeds, split.text_embeds, split.strictly_correct, split.batch_size
        ),
        "contrastive_accuracy_expected": expected_contrastive_accuracy(
            split.image_embeds, split.text_embeds, split.correct, split.batch_size
        ),
        "contrastive_batch_size": min(split.batch_size, len(split)),
    }


def measure_ceiling(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """What a perfect reader of the images reaches, where the texts' alternatives are known."""
    if ALTERNATIVES_COLUMN not in split.rows or split.rows[ALTERNATIVES_COLUMN].fillna("").eq("").any():
        return {}
    scores = perfect_reader_scores([_alternatives(split, row) for row in range(len(split))], split.texts)
    reader = contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], split.correct, split.batch_size)
    return {"ceiling.contrastive_accuracy": reader.accuracy}


def measure_retrieval(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Each image among all texts of the split, each text among all images; beside it, only the very pair is correct."""
    families = {"retrieval": split.searches, "retrieval_strict": split.strict_searches}
    return {
        f"{family}.{direction}.{name}": value
        for family, searches in families.items()
        for direction, found in searches.items()
        for name, value in retrieval_metrics(found).items()
    }


def measure_wordings(split: EmbeddedSplit, data: EmbeddedData) -> Metrics:
    """wordings.in_train: share of the rows whose text also stands in train; wordings.new.*: retrieval of the others.

    `n`, and recall_at_1 of both directions with intervals: these alone tell whether new wording is understood. None for
    train itself and without it.
    """
    if "train" not in data.splits or split.name == "train":
        return {}
    known = set(data.splits["train"].texts)
    new = np.array([text not in known for text in split.texts])
    metrics: Metrics = {"wordings.in_train": float((~new).mean()), "wordings.new.n": int(new.sum())}
    for direction, found in split.searches.items() if new.any() else ():
        values = np.where(new, found.recall_at(1), np.nan)
        recall = mean_statistic(values, split.text_ids if direction == "text_to_image" else None)
        name = f"wordings.new.{direction}.recall_at_1"
        interval = recall.interval(np.zeros(0), split.patients)
        metrics |= {name: float(np.nanmean(values))} | interval_metrics(name, interval, recall.units(split.patients))
    return metrics


def measure_zero_shot(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Grade by the most similar prompts, over the rows that have a grade.

    The AUROC needs scores that compare across images: probabilities, since some images are near to all prompts.
    `grades_predicted`: how many distinct grades the model gives; 1 is a model that has collapsed.
    """
    scores = split.grade_probabilities[split.graded]
    labels, asked = split.task.labels, split.task.positive
    metrics = zero_shot_metrics(scores, split.grades) | grade_metrics(scores, split.grades, labels.values)
    if asked:
        areas = ranking_areas(split.grades >= asked.lowest, scores[:, asked.lowest :].sum(axis=1))
        metrics |= {f"{asked.name}.{name}": value for name, value in areas.items()}
    if len(scores):
        metrics["grades_predicted"] = len(np.unique(split.predicted[split.graded]))
    return {f"{labels.metrics}.{name}": value for name, value in metrics.items()}


def prompts_table(split: EmbeddedSplit) -> list[dict[str, str | int | float]]:
    """One row per prompt of a grade: the metrics when it alone describes its grade, the other grades as they are.

    `<metric>_difference`: to the metric of all prompts; `kappa_low` and `kappa_high`: paired interval of that of
    kappa over patients, where there are enough. What is undefined is left out; no rows without grades.
    """
    if not len(split.grades):
        return []
    scores, images = split.grade_scores[split.graded], split.image_embeds[split.graded]
    task, classes = split.task, len(split.task.labels)
    together = agreement_metrics(split.grades, predicted_grades(scores), classes)
    table: list[dict[str, str | int | float]] = []
    replacements: list[np.ndarray] = []
    for grade, embeds in enumerate(split.prompts.grades):
        alone = cosine_scores(images, embeds)
        for number, prompt in enumerate(task.label_prompts[grade]):
            replaced = scores.copy()
            replaced[:, grade] = alone[:, number]
            metrics = agreement_metrics(split.grades, predicted_grades(replaced), classes)
            shown = {name: metrics[name] for name in OF_PROMPTS if name in metrics}
            changes = {
                f"{name}_difference": value - together[name] for name, value in shown.items() if name in together
            }
            table.append({"grade": task.labels.cell(grade), "prompt": prompt, **shown, **changes})
            replacements.append(predicted_grades(replaced))
    return [{**row, **bounds} for row, bounds in zip(table, _paired_bounds(split, replacements), strict=True)]


def _paired_bounds(split: EmbeddedSplit, replacements: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """`kappa_low`, `kappa_high` of the change in kappa where other predictions (G,) take the place of the split's."""
    patients = split.patients[split.graded]
    own = kappa_statistic(split.grades, split.predicted[split.graded])
    if not own.has_enough(patients):
        return [{} for _ in replacements]
    drawn = resample([own, *(kappa_statistic(split.grades, other) for other in replacements)], patients)
    bounds = [percentile_interval(values - drawn[0]) for values in drawn[1:]]
    return [{"kappa_low": each.low, "kappa_high": each.high} if each else {} for each in bounds]


def _alternatives(split: EmbeddedSplit, row: int) -> dict[str, float]:
    """Normalised text -> probability of one row; texts that normalisation makes equal add up."""
    cell = split.rows[ALTERNATIVES_COLUMN].iloc[row]
    known: dict[str, float] = {}
    try:
        for text, probability in json.loads(cell).items():
            text = normalise_text(text)
            known[text] = known.get(text, 0.0) + float(probability)
    except (TypeError, ValueError, AttributeError):
        name = split.rows["img_path"].iloc[row]
        raise UserError(
            f"{name}: {ALTERNATIVES_COLUMN} must be a JSON object of texts with their probabilities, not {cell!r}; "
            "mend or remove that column"
        ) from None
    return known
