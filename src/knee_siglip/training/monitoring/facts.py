"""What the answers of a trained model need besides its weights: facts of its training, and a limit of likeness."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from knee_siglip.metrics.calibration import fit_temperature
from knee_siglip.metrics.grading import label_scores
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from knee_siglip.model.device import images_at_once
from knee_siglip.model.embedding import embed_pixels, embed_texts
from knee_siglip.model.training_facts import TrainingFacts, heard, prompts_digest, words_of
from knee_siglip.pairs.batches import split_groups
from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.store.pixels import CachedPixels
from knee_siglip.tables.ids import independent_units
from knee_siglip.tables.manifest import count_drawn
from knee_siglip.task.task import Task
from knee_siglip.training.monitoring.likeness import disarranged, fit_likeness, reframed

logger = logging.getLogger(__name__)

IMAGES = 1024
"""Of each split, at most, drawn by a fixed seed: enough for the covariance of an embedding, seconds on a CPU."""

LEAST = 30
"""Validation images below which no temperature, and images of either split below which no limit is taken from them."""

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
    embed = partial(_embed, checkpoint, pixels)
    val_embeds = embed(val)
    facts = training_facts(manifest, verdict)
    task = heard(task, facts)
    temperature, graded = fitted_temperature(checkpoint, task, manifest.iloc[val], val_embeds)
    calibration = {"temperature": temperature, "calibrated_on": graded, "prompts": prompts_digest(task)}
    facts = facts.model_copy(update=calibration)
    likeness = None
    if min(len(train), len(val)) >= LEAST:
        known = np.concatenate([embed(train), embed(train, reframed)])
        likeness = fit_likeness((known, embed(train, disarranged)), val_embeds)
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


def _drawn(manifest: pd.DataFrame, split: str) -> np.ndarray:
    rows = np.flatnonzero((manifest["split"] == split).to_numpy())
    return np.sort(np.random.default_rng(0).permutation(rows)[:IMAGES])


def _embed(
    checkpoint: Checkpoint,
    pixels: CachedPixels,
    rows: np.ndarray,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> np.ndarray:
    """Images of these rows, after a change of `likeness.py`, to (N, D)."""

    def shown(group: np.ndarray) -> np.ndarray:
        if change is None:
            return pixels[group]
        return change(torch.from_numpy(pixels[group]), sample_keys(0, 0, torch.from_numpy(group))).numpy()

    return embed_pixels(checkpoint, map(shown, split_groups(rows, images_at_once(checkpoint.model.device))))
