"""The measurements of the evaluation. A probe reads one embedded split, and what may be learnt from the others, and
returns dotted metric names with values.

A new measurement is one more function in `PROBES`; a value that is undefined for this split is left out.
"""

import json
import math
from collections.abc import Callable

import numpy as np
import torch

from knee_siglip.data.text import normalise_text
from knee_siglip.errors import UserError
from knee_siglip.evaluation.confidence import measure_calibration
from knee_siglip.evaluation.split import EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.bootstrap import Interval, kappa_interval, macro_auroc_interval, mean_interval
from knee_siglip.metrics.retrieval import (
    contrastive_accuracy_strict,
    contrastive_credit,
    embedding_scores,
    perfect_reader_scores,
    retrieval_metrics,
    shuffled_batches,
)
from knee_siglip.metrics.zero_shot import grade_metrics, osteoarthritis_metrics, zero_shot_metrics
from knee_siglip.model.loss import sigmoid_loss

Metrics = dict[str, float]
Probe = Callable[[EmbeddedSplit, EmbeddedData], Metrics]

ALTERNATIVES_COLUMN = "text_alternatives"
"""JSON object per row: each text that could have been written about this image, with its probability."""


def count_rows(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """What the figures stand on."""
    return {
        "rows": len(split),
        "patients": len(np.unique(split.patients)),
        "distinct_texts": len(np.unique(split.text_ids)),
        "graded_rows": len(split.graded),
    }


def measure_loss(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Mean sigmoid loss over the same batches as the contrastive accuracy; equal texts are positives in any case."""
    images, texts = torch.from_numpy(split.image_embeds), torch.from_numpy(split.text_embeds)
    text_ids = torch.from_numpy(split.text_ids)
    scale, bias = torch.tensor(split.logit_scale), torch.tensor(split.logit_bias)
    batches = shuffled_batches(len(split), split.batch_size)
    losses = [sigmoid_loss(images[rows], texts[rows], scale, bias, text_ids[rows]).item() for rows in batches]
    return {"loss": float(np.mean(losses))}


def measure_contrastive(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Contrastive accuracy, both definitions; `contrastive_batch_size` is smaller than asked for in a small split."""
    scores = embedding_scores(split.image_embeds, split.text_embeds)
    credit = contrastive_credit(scores, split.text_ids, split.batch_size)
    strict = contrastive_accuracy_strict(split.image_embeds, split.text_embeds, split.batch_size)
    interval = mean_interval(credit.per_row, split.patients[credit.rows])
    return {
        "contrastive_accuracy": credit.accuracy,
        **_bounds("contrastive_accuracy", interval),
        "contrastive_accuracy_strict": strict,
        "contrastive_batch_size": credit.batch_size,
    }


def measure_bounds(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """What constant embeddings reach, and, where the texts' alternatives are known, a perfect reader of the images."""
    constant = contrastive_credit(lambda rows: np.zeros((len(rows), len(rows))), split.text_ids, split.batch_size)
    metrics = {"baseline.constant.contrastive_accuracy": constant.accuracy}
    if ALTERNATIVES_COLUMN in split.rows and split.rows[ALTERNATIVES_COLUMN].fillna("").ne("").all():
        scores = perfect_reader_scores([_alternatives(split, row) for row in range(len(split))], split.texts)
        reader = contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], split.text_ids, split.batch_size)
        metrics["ceiling.contrastive_accuracy"] = reader.accuracy
    return metrics


def measure_retrieval(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Each image among all texts of the split, each text among all images; beside it, only the very pair is correct."""
    metrics: Metrics = {}
    for direction, found in (("image_to_text", split.image_to_text), ("text_to_image", split.text_to_image)):
        figures = retrieval_metrics(found)
        figures |= _bounds("recall_at_1", mean_interval(found.recall_at(1), split.patients))
        metrics |= {f"retrieval.{direction}.{name}": value for name, value in figures.items()}
    strict = {"image_to_text": split.strict_image_to_text, "text_to_image": split.strict_text_to_image}
    for direction, found in strict.items():
        metrics |= {f"retrieval_strict.{direction}.{name}": value for name, value in retrieval_metrics(found).items()}
    return metrics


def measure_zero_shot(split: EmbeddedSplit, _: EmbeddedData) -> Metrics:
    """Kellgren-Lawrence grade by the most similar prompts, over the rows that have a grade.

    The AUROC needs figures that compare across images: probabilities, since some images are near to all prompts.
    """
    scores, predicted = split.grade_probabilities[split.graded], split.predicted[split.graded]
    patients = split.patients[split.graded]
    metrics = zero_shot_metrics(scores, split.grades)
    intervals = {
        "accuracy": lambda: mean_interval((predicted == split.grades).astype(np.float64), patients),
        "quadratic_weighted_kappa": lambda: kappa_interval(split.grades, predicted, patients),
        "macro_auroc": lambda: macro_auroc_interval(scores, split.grades, patients),
    }
    for name, interval in intervals.items():
        if name in metrics:
            metrics |= _bounds(name, interval())
    metrics |= grade_metrics(scores, split.grades)
    metrics |= {f"oa.{name}": value for name, value in osteoarthritis_metrics(scores, split.grades).items()}
    return {f"zero_shot_kl.{name}": value for name, value in metrics.items()}


PROBES: tuple[Probe, ...] = (
    count_rows,
    measure_loss,
    measure_contrastive,
    measure_bounds,
    measure_retrieval,
    measure_zero_shot,
    measure_calibration,
)


def measure(split: EmbeddedSplit, data: EmbeddedData) -> Metrics:
    """All probes of one split; what is not a finite number is left out, as JSON has no name for it."""
    metrics: Metrics = {}
    for probe in PROBES:
        metrics |= probe(split, data)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _bounds(name: str, interval: Interval | None) -> Metrics:
    return {} if interval is None else {f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


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
