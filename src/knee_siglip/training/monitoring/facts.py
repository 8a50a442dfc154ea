"""What the answers of a trained model need besides its weights: facts of its training, and a limit of likeness."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from knee_siglip.metrics.calibration import fit_temperature
from knee_siglip.metrics.grading import label_scores
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from knee_siglip.model.device import images_at_once
from knee_siglip.model.embedding import embed_pixels, embed_texts
from knee_siglip.model.training_facts import Likeness, TrainingFacts, heard, mahalanobis, prompts_digest, words_of
from knee_siglip.pairs.batches import split_groups
from knee_siglip.store.pixels import CachedPixels
from knee_siglip.tables.ids import independent_units
from knee_siglip.tables.manifest import count_drawn
from knee_siglip.task.task import Task

logger = logging.getLogger(__name__)

IMAGES = 1024
"""Of each split, at most, drawn by a fixed seed: enough for the covariance of an embedding, seconds on a CPU."""

LEAST = 30
"""Validation images below which neither a temperature nor a limit is taken from them."""

WITHIN = 0.97
"""Share of the validation images that lie within the limit: 0.99 let 9 % of chests pass (`benchmarks/likeness.py`)."""


WORD_ROWS = 5
"""Training texts that must hold a word before the checkpoint may tell that one does: patients' names are rarer."""


def add_answers(
    path: Path, manifest: pd.DataFrame, pixels: CachedPixels, task: Task, verdict: dict[str, Any], device: torch.device
) -> None:
    """Complete the checkpoint at `path`, whose weights stay as they are.

    pixels[i] belongs to manifest row i. verdict: of `Monitor.verdict`.
    """
    checkpoint = load_checkpoint(path, device)
    train, val = _drawn(manifest, "train"), _drawn(manifest, "val")
    train_embeds, val_embeds = _embed(checkpoint, pixels, train), _embed(checkpoint, pixels, val)
    facts = training_facts(manifest, verdict)
    task = heard(task, facts)
    temperature, graded = fitted_temperature(checkpoint, task, manifest.iloc[val], val_embeds)
    calibration = {"temperature": temperature, "calibrated_on": graded, "prompts": prompts_digest(task)}
    facts = facts.model_copy(update=calibration)
    likeness = fit_likeness(train_embeds, val_embeds)
    save_checkpoint(dataclasses.replace(checkpoint, facts=facts, likeness=likeness), path)


def training_facts(manifest: pd.DataFrame, verdict: dict[str, Any]) -> TrainingFacts:
    """Of a training on the manifest's train split; not calibrated yet."""
    rows = manifest[manifest["split"] == "train"]
    return TrainingFacts(
        rows=len(rows),
        drawn_rows=count_drawn(rows),
        patients=independent_units(rows).counts["patient"],
        verdict=verdict["verdict"],
        signs=[sign["name"] for sign in verdict["signs"]],
        words=_common_words(rows["text"]),
    )


def _common_words(texts: pd.Series) -> list[str]:
    counts = Counter(word for text in texts for word in words_of(text))
    return sorted(word for word, count in counts.items() if count >= WORD_ROWS)


def fitted_temperature(
    checkpoint: Checkpoint, task: Task, rows: pd.DataFrame, image_embeds: np.ndarray
) -> tuple[float | None, int]:
    """The temperature of the labels' logits and the number of graded rows; None where these are too few."""
    if not task.labels or task.labels.column not in rows:
        return None, 0
    labels = np.array(task.labels.positions(rows[task.labels.column]), dtype=np.int64)
    graded = labels >= 0
    if graded.sum() < LEAST or not np.isfinite(image_embeds).all():
        return None, int(graded.sum())
    prompts = [embed_texts(checkpoint, texts) for texts in task.label_prompts]
    scale = checkpoint.model.logit_scale.exp().item()
    temperature = fit_temperature(scale * label_scores(image_embeds[graded], prompts, scale), labels[graded])
    return (temperature if np.isfinite(temperature) else None), int(graded.sum())


def fit_likeness(train_embeds: np.ndarray, val_embeds: np.ndarray) -> Likeness | None:
    """(N, D) and (M, D) embeddings to the distance that tells unlike images; None where there are too few.

    The covariance is shrunk as by Ledoit and Wolf 2004, since there may be fewer images than dimensions. The limit is
    taken from images that took no part in it.
    """
    from sklearn.covariance import LedoitWolf  # half a second, once per training

    if min(len(train_embeds), len(val_embeds)) < LEAST or not np.isfinite([*train_embeds, *val_embeds]).all():
        return None
    known = train_embeds.astype(np.float64)
    mean, precision = known.mean(axis=0), LedoitWolf().fit(known).precision_
    limit = float(np.quantile(mahalanobis(val_embeds, mean, precision), WITHIN, method="higher"))
    return Likeness(mean, precision, limit) if 0 < limit < np.inf else None


def _drawn(manifest: pd.DataFrame, split: str) -> np.ndarray:
    rows = np.flatnonzero((manifest["split"] == split).to_numpy())
    return np.sort(np.random.default_rng(0).permutation(rows)[:IMAGES])


def _embed(checkpoint: Checkpoint, pixels: CachedPixels, rows: np.ndarray) -> np.ndarray:
    groups = split_groups(rows, images_at_once(checkpoint.model.device))
    return embed_pixels(checkpoint, (pixels[group] for group in groups))
