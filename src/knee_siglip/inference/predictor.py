"""Predictions of one checkpoint: which texts fit a radiograph, and which grade.

Needs the checkpoint file and nothing else: no hub, no params.yaml, no pandas.
"""

import math
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.core.files import sha256
from knee_siglip.metrics.grading import label_scores
from knee_siglip.model.checkpoint import load_checkpoint
from knee_siglip.model.device import pick_device
from knee_siglip.model.embedding import embed_pixels, embed_texts, ensemble
from knee_siglip.model.training_facts import NOT_CLINICAL, UNCALIBRATED, UNKNOWN, UNLIKE, heard, prompts_digest
from knee_siglip.params.checks import check_divisible
from knee_siglip.params.tasks import saved_task
from knee_siglip.task.task import Labels, Task


@dataclass(frozen=True)
class RankedQuery:
    """A text and how well it fits: `similarity` is the cosine, `probability` is sigmoid(scale * similarity + bias)."""

    query: str
    similarity: float
    probability: float


@dataclass(frozen=True)
class Prediction:
    """`ranking`: best query first. `probabilities`: of each of the `labels`, sum 1; none where there are no labels.

    distance: to the training images, as a multiple of the limit within which nearly all validation images lie; above 1
    the image is unlike them, None where the limit is not known. cautions: what must be said with the answer.
    """

    ranking: list[RankedQuery]
    labels: Labels
    probabilities: list[float]
    distance: float | None
    cautions: list[str]

    @property
    def label(self) -> int | str | None:
        """The most probable one."""
        return self.labels.cell(int(np.argmax(self.probabilities))) if self.labels else None

    @property
    def is_unlike_training(self) -> bool:
        """Whether the image is unlike those of the training."""
        return self.distance is not None and self.distance > 1


class Predictor:
    """A checkpoint on a device, with the transform its images need.

    Args:
        model_path: a checkpoint written by training.
        image_size: pixels; None takes the size it was trained at. Another one interpolates the position table.
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.
        precision: of the vision tower: fp16, bf16, float32, or `auto`: fp16 on a GPU, else float32.
        task: labels, prompts and queries; None: those of the checkpoint's training. Of its prompts those count whose
            words the training texts hold (`training_facts.heard`).

    Raises:
        UserError: the file is not such a checkpoint.
        UsageError: `image_size` is no multiple of the vision patch, or there is no such device or precision.
    """

    def __init__(
        self,
        model_path: Path,
        image_size: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        task: Task | None = None,
    ) -> None:
        self.device = pick_device(device)
        if self.device == torch.device("cuda"):  # torchrun numbers the processes of a machine
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.checkpoint = load_checkpoint(model_path, self.device, precision)
        self.transform = self.checkpoint.transform
        if image_size is not None:
            check_divisible(image_size, self.checkpoint.model.vision.patch, "this checkpoint")
            self.transform = replace(self.transform, image_size=image_size)
        self.task = heard(task or saved_task(self.checkpoint.params), self.checkpoint.facts)
        self._path = model_path
        self._turn = threading.Lock() if self.device.type != "cpu" else nullcontext()  # a GPU has memory for one batch

    @cached_property
    def digest(self) -> str:
        """sha256 of the checkpoint's file."""
        return sha256(self._path)

    @cached_property
    def prompt_embeds(self) -> list[np.ndarray]:
        """Of each of C labels its prompts, (P, D), L2-normalised."""
        return [self.embed_queries(prompts) for prompts in self.task.label_prompts]

    @cached_property
    def temperature(self) -> float | None:
        """Of the labels' logits; None if none was fitted with these prompts at this image size."""
        facts = self.checkpoint.facts
        is_fitted = facts is not None and self._is_trained_size and facts.prompts == prompts_digest(self.task)
        return facts.temperature if facts is not None and is_fitted else None

    @cached_property
    def cautions(self) -> list[str]:
        """What must be said with every answer of this model."""
        facts = self.checkpoint.facts
        known = [UNKNOWN] if facts is None else facts.cautions(self.task.subject)
        uncalibrated = [UNCALIBRATED] if self.task.labels and self.temperature is None else []
        return [NOT_CLINICAL, *known, *uncalibrated]

    def cautions_at(self, distance: float) -> list[str]:
        """With an image at this distance from the training images."""
        return [UNLIKE, *self.cautions] if distance > 1 else self.cautions

    def distances(self, image_embeds: np.ndarray) -> np.ndarray:
        """(B, D) to (B,) distances to the training images, 1 at the limit; NaN where that is not known."""
        if self.checkpoint.likeness is None or not self._is_trained_size:
            return np.full(len(image_embeds), np.nan)
        return self.checkpoint.likeness.distances(image_embeds)

    @property
    def _is_trained_size(self) -> bool:
        return self.transform.image_size == self.checkpoint.image_size

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S) to (B, D) L2-normalised float32; in parts where the device's memory ends."""
        with self._turn:
            return self._finite(embed_pixels(self.checkpoint, [pixels]))

    def embed_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Q texts to (Q, D) L2-normalised float32."""
        return self._finite(embed_texts(self.checkpoint, queries))

    def _finite(self, embeds: np.ndarray) -> np.ndarray:
        if not np.isfinite(embeds).all():
            raise UserError(f"{self._path} gives embeddings that are no numbers: its weights are damaged; train again")
        return embeds

    def probabilities(self, similarities: np.ndarray) -> np.ndarray:
        """Cosines of any shape to the probability that text and image belong together; Zhai et al. 2023, eq. 1."""
        logits = self._logit_scale * similarities.astype(np.float64) + self.checkpoint.model.logit_bias.item()
        return torch.from_numpy(logits).sigmoid().numpy()

    def grade_probabilities(self, image_embeds: np.ndarray) -> np.ndarray:
        """(B, D) to (B, C): softmax over the logits of `label_scores`; the bias cancels out.

        The logits are divided by the `temperature`, where there is one (Guo et al. 2017, arXiv:1706.04599).
        """
        if not self.task.labels:
            return np.zeros((len(image_embeds), 0))
        logits = self._logit_scale * label_scores(image_embeds, self.prompt_embeds, self._logit_scale)
        return torch.from_numpy(logits / (self.temperature or 1.0)).softmax(dim=1).numpy()

    def predict(self, pixels: np.ndarray, queries: Sequence[str] | None = None) -> list[Prediction]:
        """Compare images with texts, by default the task's, best first, and grade them.

        pixels: (B, S, S) uint8, as `transform` gives them.

        Raises:
            UsageError: there is no query, or one is empty.
        """
        image_embeds = self.embed_images(pixels)
        return self._predictions(image_embeds, queries, self.distances(image_embeds))

    def predict_study(self, pixels: np.ndarray, queries: Sequence[str] | None = None) -> Prediction:
        """As `predict`, of the images (B, S, S) of one study: by the mean of their embeddings, normalised again.

        Its distance is that of the image that is least like the training's.

        Raises:
            UsageError: there is no query, or one is empty.
        """
        image_embeds = self.embed_images(pixels)
        distance = self.distances(image_embeds).max(keepdims=True)
        return self._predictions(ensemble(image_embeds)[None], queries, distance)[0]

    def _predictions(
        self, image_embeds: np.ndarray, queries: Sequence[str] | None, distances: np.ndarray
    ) -> list[Prediction]:
        queries = distinct_queries(self.task.queries if queries is None else queries)
        similarities = image_embeds @ self.embed_queries(queries).T
        fits, grades = self.probabilities(similarities), self.grade_probabilities(image_embeds)
        predictions = []
        for scores, probabilities, grade, distance in zip(
            similarities.tolist(), fits.tolist(), grades.tolist(), distances.tolist(), strict=True
        ):
            ranking = [RankedQuery(*query) for query in zip(queries, scores, probabilities, strict=True)]
            ranking.sort(key=lambda ranked: -ranked.similarity)
            known = None if math.isnan(distance) else distance
            predictions.append(Prediction(ranking, self.task.labels, grade, known, self.cautions_at(distance)))
        return predictions

    @property
    def _logit_scale(self) -> float:
        return self.checkpoint.model.logit_scale.detach().exp().item()


def distinct_queries(queries: Sequence[str]) -> list[str]:
    """Every text once, in the given order.

    Raises:
        UsageError: none is left, or one is empty.
    """
    if not all(query.strip() for query in queries):
        raise UsageError("a query is empty; every one must be a text to compare the image with")
    if not queries:
        raise UsageError("there is no query; name at least one text to compare the image with")
    return list(dict.fromkeys(queries))
