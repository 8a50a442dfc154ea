"""What a model was trained on and how far its answers hold: kept in its checkpoint and said with each answer."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from knee_siglip.core.errors import UserError
from knee_siglip.tables.text import normalise_text
from knee_siglip.task.task import Task

NOT_CLINICAL = "not for clinical use"
UNKNOWN = "not known what it was trained on"
UNCALIBRATED = "probabilities are not calibrated"
UNLIKE = "unlike the training images"

FUNCTION_WORDS = frozenset([
    "a", "an", "and", "any", "are", "as", "at", "by", "for", "from", "in", "into", "is", "no", "not", "of", "on", "or",
    "than", "the", "this", "to", "with", "without",
])  # fmt: skip
"""They say nothing by themselves, so that knowing them is not knowing a phrase."""

Count = Annotated[int, Field(ge=0)]


class TrainingFacts(BaseModel):
    """Of the training rows and patients; of the training's end; and the temperature of the labels' probabilities.

    drawn_rows: those that were drawn by a program (`sample/`). verdict, signs: of `training/monitoring/signs.py`.
    temperature: divides the logits of the labels, fitted on `calibrated_on` validation images with the `prompts` of
    this digest; None: there were too few. words: of the training texts, not the rare ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rows: Count
    drawn_rows: Count
    patients: Count
    verdict: Literal["learned", "doubtful", "failed"]
    signs: list[Literal["collapse", "no_learning", "worse", "few_rows"]]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    calibrated_on: Count = 0
    prompts: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    words: list[Annotated[str, Field(pattern=r"^\w+$")]] = []

    def cautions(self, subject: str) -> list[str]:
        """What whoever reads an answer must know of the model. subject: what its images show."""
        found = []
        if self.drawn_rows:
            others = self.rows - self.drawn_rows
            found.append(f"trained on drawn {subject}s" + (f" ({self.drawn_rows}) and {others} others" * bool(others)))
        if self.verdict != "learned":
            reasons = f" ({', '.join(sign.replace('_', ' ') for sign in self.signs)})" if self.signs else ""
            found.append(f"its training {'failed' if self.verdict == 'failed' else 'is doubtful'}{reasons}")
        return found

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text, but for function words, of which the training says nothing in either number.

        None where the words of the training are not known.
        """
        if not self.words:
            return []
        known = {form for word in self.words for form in (word, f"{word}s", word.removesuffix("s"))}
        return [word for word in words_of(normalise_text(text)) if word not in known]


def heard(task: Task, facts: TrainingFacts | None) -> Task:
    """The task without the prompts that hold unknown words, which training has left at an arbitrary place.

    A label, or a side of a finding, none of whose prompts would be left keeps them all; without facts all stay.
    """
    if facts is None:
        return task

    def known(prompts: Sequence[str]) -> Sequence[str]:
        return [prompt for prompt in prompts if not facts.unknown_words(prompt)] or prompts

    findings = {
        name: replace(finding, positive=known(finding.positive), negative=known(finding.negative))
        for name, finding in task.findings.items()
    }
    return replace(task, label_prompts=[known(prompts) for prompts in task.label_prompts], findings=findings)


def words_of(text: str) -> list[str]:
    """The words of a normalised text, each once, without numbers and English function words."""
    return [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text)) if word not in FUNCTION_WORDS]


@dataclass(frozen=True)
class Likeness:
    """How far an image's embedding lies from those of the training images, relative to the same images disarranged.

    The ratio of the Mahalanobis distances to their means (2, D), by their precision matrices (2, D, D). Of older
    checkpoints only the distance to the training images: (D,) and (D, D). limit: within it lie nearly all validation
    images (`training/monitoring/likeness.py`).
    """

    mean: np.ndarray
    precision: np.ndarray
    limit: float

    def distances(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) embeddings to (N,) distances as multiples of the limit: above 1 an image is unlike the training's."""
        return relative_distances(image_embeds, self.mean, self.precision) / self.limit

    def to_dict(self) -> dict[str, Any]:
        """Tensors and numbers, as a checkpoint holds them."""
        return {
            "mean": torch.from_numpy(self.mean).float(),
            "precision": torch.from_numpy(self.precision).float(),
            "limit": float(self.limit),
        }

    @classmethod
    def from_dict(cls, values: Any, width: int) -> "Likeness":
        """From its `to_dict`.

        Raises:
            UserError: it is not about embeddings of this width, or not made of finite numbers.
        """
        if not isinstance(values, dict):
            raise UserError("its likeness is no dict")
        mean = values.get("mean")
        groups = (2,) if isinstance(mean, Tensor) and mean.ndim == 2 else ()
        shapes = {"mean": (*groups, width), "precision": (*groups, width, width)}
        for name, shape in shapes.items():
            value = values.get(name)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.isfinite().all():
                raise UserError(f"{name} of its likeness must be finite numbers of shape {shape}")
        limit = values.get("limit")
        if not isinstance(limit, float) or not 0 < limit < float("inf"):
            raise UserError(f"limit of its likeness = {limit!r}: must be a number above 0")
        return cls(values["mean"].double().numpy(), values["precision"].double().numpy(), limit)


def relative_distances(image_embeds: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(N, D) to (N,) Mahalanobis distances to one mean, or to the first of two divided by that to the second."""
    offsets = image_embeds.astype(np.float64) - np.atleast_2d(mean)[:, np.newaxis]  # (1 or 2, N, D)
    distances = np.sqrt(np.maximum(((offsets @ precision) * offsets).sum(axis=2), 0))
    return distances[0] / np.maximum(distances[1], 1e-6) if len(distances) == 2 else distances[0]


def prompts_digest(task: Task) -> str:
    """Changes with the labels, with the prompts that stand for them, and with how they are pooled.

    A temperature is of these alone.
    """
    prompts: Sequence[Sequence[str]] = [list(texts) for texts in task.label_prompts]
    facts = ["smooth maximum", task.labels.column, task.labels.values, prompts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
