"""One split, embedded: what every measurement reads."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from scipy.special import softmax

from knee_siglip.core.errors import UserError
from knee_siglip.metrics.grading import label_scores, predicted_grades
from knee_siglip.metrics.matching.retrieval import Correct, FirstCorrect, find_first_correct, number_texts
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.device import images_at_once
from knee_siglip.model.embedding import embed_pixels, embed_texts, ensemble
from knee_siglip.pairs.batches import split_groups
from knee_siglip.params.sections import EvaluateParams
from knee_siglip.store.pixels import CachedPixels
from knee_siglip.tables.ids import Units, independent_units
from knee_siglip.tables.manifest import EXTERNAL, number_groups
from knee_siglip.task.task import Task


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings of the prompts, float32 and L2-normalised.

    grades: of each of C grades its prompts, (P, D) each. findings: name to (2, D), the ensembles for and
    against it.
    """

    grades: list[np.ndarray]
    findings: dict[str, np.ndarray]


@dataclass(frozen=True)
class EmbeddedSplit:
    """N pairs of one split with their embeddings, float32 and L2-normalised.

    rows: the N manifest rows. numbers: (N,) their places in the manifest. image_embeds, text_embeds: (N, D).
    logit_scale, logit_bias: of the model, the scale already exponentiated. batch_size: of the contrastive metrics.
    """

    name: str
    rows: pd.DataFrame
    numbers: np.ndarray
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    task: Task
    prompts: PromptEmbeds
    logit_scale: float
    logit_bias: float
    batch_size: int

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def texts(self) -> list[str]:
        """(N,) normalised impressions."""
        return self.rows["text"].tolist()

    @cached_property
    def text_ids(self) -> np.ndarray:
        """(N,) integers, equal where the texts are."""
        return number_texts(self.texts)

    @cached_property
    def units(self) -> Units:
        """The patients, or what stands for them where none is known."""
        return independent_units(self.rows)

    @property
    def patients(self) -> np.ndarray:
        """(N,) integers, equal for rows of one independent unit."""
        return self.units.numbers

    @cached_property
    def study_ids(self) -> np.ndarray:
        """(N,) integers, equal for images of one study; an image without one stands for itself."""
        return number_groups(self.rows, "study_id")

    @cached_property
    def correct(self) -> Correct:
        """Equal texts, and images and texts of one study, are correct for each other."""
        return Correct(self.text_ids, self.study_ids)

    @cached_property
    def strictly_correct(self) -> Correct:
        """Only the very pair is."""
        return Correct(self.text_ids, strict=True)

    @cached_property
    def graded(self) -> np.ndarray:
        """(G,) row numbers that have a grade."""
        return np.flatnonzero(self._positions >= 0)

    @cached_property
    def grades(self) -> np.ndarray:
        """(G,) the grades of the `graded` rows: positions in the task's labels."""
        return self._positions[self.graded]

    @cached_property
    def _positions(self) -> np.ndarray:
        """(N,) grades, -1 where there is none."""
        labels = self.task.labels
        if labels.column not in self.rows:
            return np.full(len(self), -1)
        return np.array(labels.positions(self.rows[labels.column]), dtype=np.int64)

    @cached_property
    def grade_scores(self) -> np.ndarray:
        """(N, C) `label_scores` of the grades' prompts."""
        return label_scores(self.image_embeds, self.prompts.grades, self.logit_scale)

    @cached_property
    def grade_probabilities(self) -> np.ndarray:
        """(N, C) softmax over the grades' logits; the bias cancels out."""
        if not self.task.labels:
            return np.zeros((len(self), 0))
        return np.asarray(softmax(self.logit_scale * self.grade_scores, axis=1))

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) zero-shot grade, -1 without labels."""
        if not self.task.labels:
            return np.full(len(self), -1)
        return predicted_grades(self.grade_scores)

    @cached_property
    def searches(self) -> dict[str, FirstCorrect]:
        """image_to_text: each image against all texts of the split; text_to_image: each text against all images."""
        return self._search(self.correct)

    @cached_property
    def strict_searches(self) -> dict[str, FirstCorrect]:
        """The same where only the very pair is correct."""
        return self._search(self.strictly_correct)

    def _search(self, correct: Correct) -> dict[str, FirstCorrect]:
        return {
            "image_to_text": find_first_correct(self.image_embeds, self.text_embeds, correct),
            "text_to_image": find_first_correct(self.text_embeds, self.image_embeds, correct),
        }


@dataclass(frozen=True)
class EmbeddedData:
    """Every split of the manifest that has rows, by name, and what they were embedded with."""

    params: EvaluateParams
    splits: dict[str, EmbeddedSplit]
    checkpoint: Checkpoint
    pixels: CachedPixels

    @property
    def evaluated(self) -> list[EmbeddedSplit]:
        """The splits of `params.splits`, each once, in that order, and the second test set where there is one."""
        return [self.splits[name] for name in [*self.params.splits, EXTERNAL] if name in self.splits]


def embed_split(
    name: str,
    manifest: pd.DataFrame,
    pixels: CachedPixels,
    checkpoint: Checkpoint,
    task: Task,
    prompts: PromptEmbeds,
    batch: int,
) -> EmbeddedSplit:
    """Embed the rows of the split `name`; pixels[i] belongs to manifest row i.

    Raises:
        UserError: the model gives no finite numbers.
    """
    numbers = np.flatnonzero((manifest["split"] == name).to_numpy())
    rows = manifest.iloc[numbers].reset_index(drop=True)
    groups = list(split_groups(numbers, images_at_once(checkpoint.model.device)))
    shown = track(groups, description=f"Embedding {name}", console=Console(stderr=True))
    split = EmbeddedSplit(
        name=name,
        rows=rows,
        numbers=numbers,
        image_embeds=embed_pixels(checkpoint, (pixels[group] for group in shown)),
        text_embeds=embed_texts(checkpoint, rows["text"].tolist()),
        task=task,
        prompts=prompts,
        logit_scale=checkpoint.model.logit_scale.exp().item(),
        logit_bias=checkpoint.model.logit_bias.item(),
        batch_size=batch,
    )
    embeds = (split.image_embeds, split.text_embeds, *prompts.grades)
    if not all(np.isfinite(values).all() for values in embeds):
        raise UserError(f"the model's embeddings of the {name} split are not finite numbers: its training diverged")
    return split


def embed_prompts(checkpoint: Checkpoint, task: Task) -> PromptEmbeds:
    """The prompts of grades and findings."""
    findings = {
        name: np.stack([ensemble(embed_texts(checkpoint, texts)) for texts in (finding.positive, finding.negative)])
        for name, finding in task.findings.items()
    }
    return PromptEmbeds([embed_texts(checkpoint, prompts) for prompts in task.label_prompts], findings)
