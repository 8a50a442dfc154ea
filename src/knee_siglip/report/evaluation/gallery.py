"""What the model found for single images: a drawn gallery of retrieval, the worst mistakes, the grounding maps."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from knee_siglip.metrics.grading import GRADES
from knee_siglip.metrics.matching.similarity import cosine_scores
from knee_siglip.report.evaluation.page_data import SplitResults
from knee_siglip.report.evaluation.plot_rows import graded_rows
from knee_siglip.report.evaluation.wording import GRADE_WORDS, percentage
from knee_siglip.report.html.pictures import SIDE, Picture, picture_of

TEXTS_SHOWN = 5
MISTAKES_SHOWN = 8
OVERLAYS_SHOWN = 12
OVERLAY_SIDE = 2 * SIDE
"""Of a map: two images beside each other, the one without and the one with it."""
SEED = 0

PROBABILITIES = [f"kl_probability_{grade}" for grade in range(GRADES)]


@dataclass(frozen=True)
class Retrieved:
    """A text found for an image. count: of rows that have it."""

    text: str
    right: bool
    similarity: float
    count: int


@dataclass(frozen=True)
class Query:
    """An image, what was written about it, and what the model found for it, the most alike first."""

    picture: Picture
    name: str
    text: str
    found: list[Retrieved]


@dataclass(frozen=True)
class Mistake:
    """A graded image whose grade the model mistook."""

    picture: Picture
    name: str
    title: str
    text: str


def gallery(split: SplitResults, count: int) -> list[Query]:
    """`count` images, drawn by a fixed seed, half of them with a right text on top; fewer kinds where there are none.

    Equal texts are one candidate, since five times the same would tell nothing. Right is the text of the image or of
    another image of its study.
    """
    predictions = split.predictions.reset_index(drop=True)
    texts = predictions["text"].astype(str).to_numpy(dtype=object)
    _, firsts, counts = np.unique(texts, return_index=True, return_counts=True)
    drawn = _draw_halves(_is_hit(predictions), count)
    scores = cosine_scores(split.image_embeds[drawn], split.text_embeds[firsts])
    queries = []
    for row, similar, pixels in zip(drawn, scores, split.images(drawn) if len(drawn) else (), strict=True):
        right = _right_texts(predictions, int(row))
        found = [
            Retrieved(texts[firsts[place]], texts[firsts[place]] in right, float(similar[place]), int(counts[place]))
            for place in np.argsort(-similar, kind="stable")[:TEXTS_SHOWN]
        ]
        picture = picture_of(Image.fromarray(pixels))
        queries.append(Query(picture, str(predictions.at[row, "img_path"]), texts[row], found))
    return queries


def worst_mistakes(split: SplitResults) -> list[Mistake]:
    """The largest errors of the grade first, of equal ones those that the model was surest of."""
    graded = graded_rows(split.predictions)
    actual, predicted = (graded[name].to_numpy(dtype=np.int64) for name in ("kl_grade", "kl_grade_predicted"))
    sure = graded.reindex(columns=PROBABILITIES).to_numpy(dtype=np.float64)[np.arange(len(graded)), predicted]
    wrong = np.flatnonzero(actual != predicted)
    worst = wrong[np.lexsort((-sure[wrong], -np.abs(actual - predicted)[wrong]))][:MISTAKES_SHOWN]
    images = split.images(graded.index.to_numpy()[worst]) if len(worst) else ()
    return [
        Mistake(
            picture_of(Image.fromarray(pixels)),
            str(graded["img_path"].iloc[place]),
            f"Reader: {_grade(actual[place])}. Model: {_grade(predicted[place])}{_sure(sure[place])}.",
            str(graded["text"].iloc[place]),
        )
        for place, pixels in zip(worst, images, strict=True)
    ]


def overlays(files: Sequence[tuple[str, bytes]]) -> list[tuple[str, Picture]]:
    """(title, picture) of the first grounding maps; one that is no image says so."""
    return [(title, _decoded(file)) for title, file in files[:OVERLAYS_SHOWN]]


def _is_hit(predictions: pd.DataFrame) -> np.ndarray:
    """(N,) whether a right text came first, by the measurement itself; without one all count as misses."""
    if "image_to_text_recall_at_1" not in predictions.columns:
        return np.zeros(len(predictions), dtype=bool)
    return (predictions["image_to_text_recall_at_1"] >= 0.5).to_numpy(dtype=bool)


def _right_texts(predictions: pd.DataFrame, row: int) -> set[str]:
    texts = predictions["text"].astype(str)
    right = {texts[row]}
    if "study_id" in predictions.columns:
        # a missing study equals none, not even itself
        right |= set(texts[(predictions["study_id"] == predictions["study_id"].iloc[row]).fillna(False).astype(bool)])
    return right


def _draw_halves(right: np.ndarray, count: int) -> np.ndarray:
    """Row numbers, half where `right` (N,) is true and half where not; the rest of the one where the other is rare."""
    rng = np.random.default_rng(SEED)
    hits, misses = rng.permutation(np.flatnonzero(right)), rng.permutation(np.flatnonzero(~right))
    wrong = min(len(misses), max(count // 2, count - len(hits)))
    return np.concatenate([hits[: count - wrong], misses[:wrong]]).astype(np.int64)


def _grade(grade: int) -> str:
    return f"{grade} ({GRADE_WORDS[grade]})"


def _sure(confidence: float) -> str:
    return f", {percentage(confidence)} sure" if np.isfinite(confidence) else ""


def _decoded(file: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(file)) as image:
            return picture_of(image.convert("RGB"), OVERLAY_SIDE)
    except (UnidentifiedImageError, OSError):
        return Picture("", "This map cannot be shown.")
