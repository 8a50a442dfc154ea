"""A trained model in a Python program: `knee_siglip.load(path).predict(images, queries)`, `.explain(image, phrase)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from knee_siglip.core.errors import UsageError
from knee_siglip.explain.maps import METHODS, Method, phrase_maps
from knee_siglip.explain.overlays import LOG_ODDS, OF_PEAK, Scale, draw_overlay, enlarge, missing_reason
from knee_siglip.imaging.fit.transform import load_pixels
from knee_siglip.inference.predictor import Prediction, Predictor
from knee_siglip.metrics.grounding import evidence
from knee_siglip.model.training_facts import words_of
from knee_siglip.tables.text import normalise_text

Image = Path | str | np.ndarray
"""A file (PNG, JPEG, TIFF or DICOM), or its greys: uint8 (H, W), bone bright."""


@dataclass(frozen=True)
class Explanation:
    """Where the model sees a phrase. pixels: (S, S) uint8, what the encoder sees; heat: (S, S) float32.

    The higher the heat, the more that place speaks for the phrase; below 0 it speaks against it. scale: its unit, the
    same for every image, but of `gradient` shares of the peak. missing: why the phrase is nowhere, "" where it is
    somewhere. cautions: as those of a `Prediction`, and the words that the training texts do not have.
    """

    pixels: np.ndarray
    heat: np.ndarray
    scale: Scale
    missing: str
    cautions: list[str]

    def overlay(self) -> bytes:
        """A JPEG file: the image, beside it the image under the map, or "not found", and the colour scale."""
        return draw_overlay(self.pixels, self.heat, np.zeros((0, 4)), self.scale, missing=bool(self.missing))


class KneeModel:
    """A checkpoint that answers questions about radiographs. Research software: not a medical device."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, images: Sequence[Image], queries: Sequence[str] | None = None) -> list[Prediction]:
        """Rank the queries, by default the task's, for each image, best first, and grade it.

        Raises:
            ImageError: naming the file that cannot be read.
            UsageError: there is no query, one is empty, or an array is no grey image.
        """
        if not len(images):
            return []
        return self.predictor.predict(np.stack([self._pixels(image) for image in images]), queries)

    def predict_study(self, images: Sequence[Image], queries: Sequence[str] | None = None) -> Prediction:
        """As `predict`, of all images of one study together: one answer, by the mean of their embeddings.

        Raises:
            ImageError: naming the file that cannot be read.
            UsageError: there is no image or no query, one is empty, or an array is no grey image.
        """
        if not len(images):
            raise UsageError("a study needs at least one image")
        return self.predictor.predict_study(np.stack([self._pixels(image) for image in images]), queries)

    @property
    def normal(self) -> str:
        """What a phrase is held against by default: a text for an image without any finding."""
        return self.predictor.task.normal

    def explain(self, image: Image, phrase: str, against: str | None = None, method: str = "occlusion") -> Explanation:
        """Map where the image speaks for `phrase` rather than `against`; for the methods see docs/metrics.md.

        Raises:
            ImageError: naming the file that cannot be read.
            UsageError: of `check_question`, or the array is no grey image.
        """
        against = self.normal if against is None else against
        check_question(phrase, against, method)
        checkpoint, pixels = self.predictor.checkpoint, self._pixels(image)
        device = checkpoint.model.device
        wanted, unwanted = torch.from_numpy(self.predictor.embed_queries((phrase, against))).to(device)
        maps = phrase_maps(
            checkpoint.model,
            torch.from_numpy(pixels[None]).to(device),
            [(wanted - unwanted)[None]],
            cast(Method, method),
            dtype=checkpoint.vision_dtype,
        )
        image_embeds = self.predictor.embed_images(pixels[None])
        (distance,) = self.predictor.distances(image_embeds).tolist()
        raw = enlarge(maps[0][0].cpu().numpy(), len(pixels))
        logit_scale = checkpoint.model.logit_scale.exp().item()
        margin = logit_scale * float(image_embeds[0] @ (wanted - unwanted).cpu().numpy())
        heat, scale = (evidence(raw), OF_PEAK) if method == "gradient" else (raw * np.float32(logit_scale), LOG_ODDS)
        unheard, cautions = self._unheard(phrase)
        missing = unheard or missing_reason(heat, margin, against)
        return Explanation(pixels, heat, scale, missing, [*self.predictor.cautions_at(distance), *cautions])

    def _unheard(self, phrase: str) -> tuple[str, list[str]]:
        """Why no map of the phrase can mean anything, "" where it can; and a caution of words that are new to it."""
        facts = self.predictor.checkpoint.facts
        unknown = facts.unknown_words(phrase) if facts is not None else []
        if not unknown:
            return "", []
        caution = f"not in the training texts: {', '.join(unknown)}"
        return (caution if len(unknown) == len(words_of(normalise_text(phrase))) else ""), [caution]

    def _pixels(self, image: Image) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            return load_pixels(Path(image), self.predictor.transform)
        if image.dtype != np.uint8 or image.ndim != 2 or not image.size:
            raise UsageError(f"an image must be uint8 (height, width), not {image.dtype} {image.shape}")
        return self.predictor.transform(image)


def check_question(phrase: str, against: str | None, method: str) -> None:
    """Check what `explain` is asked, before a model is loaded; without `against`, the rest.

    Raises:
        UsageError: a text is empty, both are the same to the encoder, or there is no such method.
    """
    texts = [normalise_text(text) for text in (phrase, against) if text is not None]
    if not all(texts) or len(set(texts)) < len(texts):
        raise UsageError("phrase and against must be texts, and not the same one")
    if method not in METHODS:
        raise UsageError(f"method = {method!r}: there are {', '.join(METHODS)}")


def load(path: Path | str, image_size: int | None = None, device: str = "auto", precision: str = "auto") -> KneeModel:
    """Load a checkpoint such as models/best_model.pt; it needs no other file.

    Args:
        path: a file that training wrote.
        image_size: pixels; None takes the size it was trained at.
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.
        precision: of the vision tower: fp16, bf16, float32, or `auto`: fp16 on a GPU, else float32.

    Raises:
        UserError: the file is no such checkpoint, or there is no such device or precision.
    """
    return KneeModel(Predictor(Path(path), image_size, device, precision))
