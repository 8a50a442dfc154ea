"""What the headline metrics are worth: the same metrics of four ways that know less than a trained model.

- `constant`: no information at all: every order of the candidates is equally likely, and each grade is guessed alike.
- `text_prior`: the image is not looked at; the text, or grade, that is most frequent in train is the best for each.
- `pixel_neighbour`: the text, or grade, of the train image whose raw pixels, downsampled, are nearest. Texts are
  compared by their words (TF-IDF), so that a text that train does not hold can be found as well.
- `untrained`: the encoders as they were before the training, with the projection that it started from.

The second and the third learn from train, so there are none of train itself.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import pairwise_distances_argmin
from torch import nn
from torch.nn import functional as F

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit, embed_prompts
from knee_siglip.evaluation.headline import GRADING
from knee_siglip.evaluation.split_metrics import Metrics
from knee_siglip.metrics.grading import zero_shot_metrics
from knee_siglip.metrics.matching.retrieval import contrastive_credit, embedding_scores
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.device import images_at_once, place
from knee_siglip.model.embedding import embed_pixels, embed_texts
from knee_siglip.pairs.batches import split_groups
from knee_siglip.params.files import parse_params
from knee_siglip.store.pixels import CachedPixels

logger = logging.getLogger(__name__)

JUDGED = ("contrastive_accuracy", "quadratic_weighted_kappa")
"""What a model must beat every baseline in: matching, and grading (the last part of the metric's name)."""

THUMBNAIL = 32
"""Side in pixels at which radiographs are compared: more would find the same noise, not the same knee."""

WORDS = 2048
"""The most frequent words of train that texts are compared by: bounds the memory."""


def baselines_table(split: EmbeddedSplit, data: EmbeddedData, backbones: Path) -> list[dict[str, str | float]]:
    """One row per `baseline` and headline `metric` with its `value`; what cannot be had, or is undefined, is left out.

    Args:
        backbones: the encoders before the training; without them there is no `untrained`.
    """
    found = {"constant": constant(split)}
    if "train" in data.splits and split.name != "train":
        train = data.splits["train"]
        found["text_prior"] = text_prior(split, train)
        found["pixel_neighbour"] = pixel_neighbour(split, train, data.pixels)
    if (start := load_untrained(data, backbones)) is not None:
        found["untrained"] = untrained(split, data, start)
    return [
        {"baseline": baseline, "metric": metric, "value": value}
        for baseline, metrics in found.items()
        for metric, value in metrics.items()
    ]


def baseline_metrics(table: Sequence[Mapping[str, str | float]]) -> Metrics:
    """baseline.<name>.<metric>, as metrics.json names the table's values."""
    return {f"baseline.{row['baseline']}.{row['metric']}": float(row["value"]) for row in table}


def beats_baselines(metrics: Mapping[str, float]) -> Metrics:
    """verdict.beats_baselines: 1 where the model's lower bound is above every baseline in all of `JUDGED`, else 0.

    Args:
        metrics: of one split, dotted, with the intervals and the baselines. A metric that lacks either does not count;
            without any there is no verdict.
    """
    verdicts = []
    for key, value in metrics.items():
        if key.startswith("baseline.") and key.endswith(JUDGED):
            low = metrics.get(f"{key.split('.', 2)[2]}_ci_low")
            verdicts += [] if low is None else [low > value]
    return {"verdict.beats_baselines": int(all(verdicts))} if verdicts else {}


def constant(split: EmbeddedSplit) -> Metrics:
    """Chance. A grade guessed with probability 1/C each is right as often, and agrees by chance alone: kappa 0."""
    nothing = np.ones((len(split), 1), dtype=np.float32)
    metrics = _matching(split, nothing, nothing)
    if not len(split.graded):
        return metrics
    by_chance = 1 / len(split.task.labels)
    guessed = {"accuracy": by_chance, "balanced_accuracy": by_chance, "quadratic_weighted_kappa": 0.0}
    if len(np.unique(split.grades)) > 1:
        guessed["macro_auroc"] = 0.5
    return metrics | {f"{split.task.labels.metrics}.{name}": value for name, value in guessed.items()}


def text_prior(split: EmbeddedSplit, train: EmbeddedSplit) -> Metrics:
    """Every image gets the same scores: how often train holds each text, and each grade."""
    counts = Counter(train.texts)
    share = np.array([counts[text] for text in split.texts]) / max(counts.values())
    # vectors of length 1 whose cosine is the share
    texts = np.stack([share, np.sqrt(1 - share**2)], axis=1)
    images = np.tile([1.0, 0.0], (len(split), 1))
    prior = np.bincount(train.grades, minlength=len(split.task.labels))
    return _matching(split, images, texts) | _grading(split, np.tile(prior, (len(split.graded), 1)), train)


def pixel_neighbour(split: EmbeddedSplit, train: EmbeddedSplit, pixels: CachedPixels) -> Metrics:
    """Text and grade of the nearest train image by Euclidean distance; the grade is that of the nearest graded one."""
    own, others = thumbnails(pixels, split.numbers), thumbnails(pixels, train.numbers)
    words = TfidfVectorizer(max_features=WORDS, token_pattern=r"\w+", dtype=np.float32).fit(train.texts)  # noqa: S106 no password
    nearest = pairwise_distances_argmin(own, others)
    borrowed = words.transform([train.texts[row] for row in nearest]).toarray()
    metrics = _matching(split, borrowed, words.transform(split.texts).toarray())
    if len(split.graded) and len(train.graded):
        predicted = train.grades[pairwise_distances_argmin(own[split.graded], others[train.graded])]
        metrics |= _grading(split, np.eye(len(split.task.labels))[predicted], train)
    return metrics


def untrained(split: EmbeddedSplit, data: EmbeddedData, start: Checkpoint) -> Metrics:
    """Images, texts and prompts embedded by the model before its training."""
    groups = split_groups(split.numbers, images_at_once(start.model.device))
    before = dataclasses.replace(
        split,
        image_embeds=embed_pixels(start, (data.pixels[rows] for rows in groups)),
        text_embeds=embed_texts(start, split.texts),
        prompts=embed_prompts(start, split.task),
        logit_scale=start.model.logit_scale.exp().item(),
    )
    probabilities = before.grade_probabilities[before.graded]
    return _matching(before, before.image_embeds, before.text_embeds) | _grading(before, probabilities, before)


def load_untrained(data: EmbeddedData, backbones: Path) -> Checkpoint | None:
    """The model as the training's seed began it; None where the encoders that it began with are not there."""
    if not backbones.is_dir():
        return None
    trained = data.checkpoint
    try:
        params = parse_params(trained.params, "the checkpoint's params")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(params.seed)
            model, tokenizer = build_model(backbones, params.model, contrastive_batch=1)  # the bias ranks nothing
    except UserError as error:
        logger.warning("no baseline of the untrained encoders: %s", error)
        return None
    if _shapes(model) != _shapes(trained.model):
        logger.warning("no baseline of the untrained encoders: %s holds others than the model began with", backbones)
        return None
    return dataclasses.replace(trained, model=place(model, trained.model.device).eval(), tokenizer=tokenizer)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: values.shape for name, values in model.state_dict().items()}


def thumbnails(pixels: CachedPixels, numbers: np.ndarray) -> np.ndarray:
    """(N, THUMBNAIL^2) float32 mean greys of the images of these manifest rows (N,)."""
    parts = [
        F.adaptive_avg_pool2d(torch.from_numpy(pixels[rows].astype(np.float32)), THUMBNAIL).flatten(1).numpy()
        for rows in split_groups(numbers, images_at_once(torch.device("cpu")))
    ]
    return np.concatenate(parts) if parts else np.zeros((0, THUMBNAIL**2), dtype=np.float32)


def _matching(split: EmbeddedSplit, image_embeds: np.ndarray, text_embeds: np.ndarray) -> Metrics:
    """Contrastive accuracy and recall@1 both ways as if these (N, D) were the split's embeddings."""
    paired = dataclasses.replace(split, image_embeds=image_embeds, text_embeds=text_embeds)
    scores = embedding_scores(image_embeds, text_embeds)
    return {
        "contrastive_accuracy": contrastive_credit(scores, split.correct, split.batch_size).accuracy,
        "retrieval.image_to_text.recall_at_1": float(paired.searches["image_to_text"].recall_at(1).mean()),
        "retrieval.text_to_image.recall_at_1": float(paired.searches["text_to_image"].recall_at(1).mean()),
    }


def _grading(split: EmbeddedSplit, scores: np.ndarray, learnt_from: EmbeddedSplit) -> Metrics:
    """Of scores (G, 5) of the graded rows; none where there was no grade to learn from."""
    if not len(learnt_from.graded):
        return {}
    metrics = zero_shot_metrics(scores, split.grades)
    return {f"{split.task.labels.metrics}.{name}": metrics[name] for name in GRADING if name in metrics}
