"""One split, embedded: what every measurement reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from knee_siglip.data.store import CachedPixels
from knee_siglip.errors import UserError
from knee_siglip.metrics.bootstrap import number_patients
from knee_siglip.metrics.calibration import softmax
from knee_siglip.metrics.retrieval import FirstCorrect, find_first_correct, number_texts
from knee_siglip.metrics.similarity import cosine_scores
from knee_siglip.metrics.zero_shot import GRADES, predicted_grades
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.embedding import embed_pixels, embed_texts

IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class EmbeddedSplit:
    """N pairs of one split with their embeddings, float32 and L2-normalised.

    rows: the N manifest rows. image_embeds, text_embeds: (N, D). grade_embeds: (5, D), the prompts of each
    Kellgren-Lawrence grade. logit_scale, logit_bias: of the model, the scale already exponentiated. batch_size: of the
    contrastive metrics.
    """

    name: str
    rows: pd.DataFrame
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    grade_embeds: np.ndarray
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
    def patients(self) -> np.ndarray:
        """(N,) integers, equal for rows of one patient; a row without one stands for itself."""
        known = "patient_id" in self.rows
        return number_patients(self.rows["patient_id"].fillna("").tolist() if known else None, len(self))

    @cached_property
    def graded(self) -> np.ndarray:
        """(G,) row numbers that have a Kellgren-Lawrence grade 0-4."""
        if "kl_grade" not in self.rows:
            return np.zeros(0, dtype=np.int64)
        grades = pd.to_numeric(self.rows["kl_grade"], errors="coerce")
        return np.flatnonzero(grades.isin(range(GRADES)).fillna(False).to_numpy(dtype=bool))

    @cached_property
    def grades(self) -> np.ndarray:
        """(G,) the grades of the `graded` rows."""
        if not len(self.graded):
            return np.zeros(0, dtype=np.int64)
        return pd.to_numeric(self.rows["kl_grade"].iloc[self.graded]).to_numpy(dtype=np.int64)

    @cached_property
    def grade_scores(self) -> np.ndarray:
        """(N, 5) cosine of each image with each grade's prompts."""
        return cosine_scores(self.image_embeds, self.grade_embeds)

    @cached_property
    def grade_probabilities(self) -> np.ndarray:
        """(N, 5) softmax over the grades' logits; the bias cancels out."""
        return softmax(self.logit_scale * self.grade_scores)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) zero-shot grade."""
        return predicted_grades(self.grade_scores)

    @cached_property
    def image_to_text(self) -> FirstCorrect:
        """Each image against all texts of the split."""
        return find_first_correct(self.image_embeds, self.text_embeds, self.text_ids)

    @cached_property
    def text_to_image(self) -> FirstCorrect:
        """Each row's text against all images of the split."""
        return find_first_correct(self.text_embeds, self.image_embeds, self.text_ids)


def embed_split(
    name: str,
    manifest: pd.DataFrame,
    pixels: CachedPixels,
    checkpoint: Checkpoint,
    grade_embeds: np.ndarray,
    batch_size: int,
) -> EmbeddedSplit:
    """Embed the rows of the split `name`; pixels[i] belongs to manifest row i.

    Raises:
        UserError: the split has no rows, or the model gives no finite numbers.
    """
    numbers = np.flatnonzero((manifest["split"] == name).to_numpy())
    if not len(numbers):
        raise UserError(f"params.yaml: evaluate.splits names {name}, but no row of the manifest is in that split")
    rows = manifest.iloc[numbers].reset_index(drop=True)
    split = EmbeddedSplit(
        name=name,
        rows=rows,
        image_embeds=embed_pixels(checkpoint, _pixel_batches(pixels, numbers, f"Embedding {name}")),
        text_embeds=embed_texts(checkpoint, rows["text"].tolist()),
        grade_embeds=grade_embeds,
        logit_scale=checkpoint.model.logit_scale.exp().item(),
        logit_bias=checkpoint.model.logit_bias.item(),
        batch_size=batch_size,
    )
    if not all(np.isfinite(embeds).all() for embeds in (split.image_embeds, split.text_embeds, grade_embeds)):
        raise UserError(f"the model's embeddings of the {name} split are not finite numbers: its training diverged")
    return split


def _pixel_batches(pixels: CachedPixels, numbers: np.ndarray, description: str) -> Iterator[np.ndarray]:
    starts = range(0, len(numbers), IMAGES_AT_ONCE)
    for start in track(starts, description=description, console=Console(stderr=True)):
        yield pixels[numbers[start : start + IMAGES_AT_ONCE]]
