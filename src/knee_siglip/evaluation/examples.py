"""Single images that the report shows: what retrieval finds for some of them, and the worst mistakes of the grade."""

from typing import Any

import numpy as np

from knee_siglip.evaluation.case_maps import worst_grades
from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.metrics.matching.similarity import similar_texts

MISTAKES_SHOWN = 8
SEED = 0

Example = dict[str, Any]


def gallery(split: EmbeddedSplit, count: int) -> list[Example]:
    """Draw `count` images by a fixed seed, half of them with a right text on top as far as there are enough of both.

    Returns:
        of each its `row` in the split, `img_path`, `text`, and the texts `found` for it, as `similar_texts` tells them.
    """
    drawn = _draw_halves(split.searches["image_to_text"].recall_at(1) >= 0.5, count)
    found = similar_texts(drawn, split.image_embeds, split.text_embeds, split.texts, split.text_ids, split.study_ids)
    return [_example(split, row) | {"found": texts} for row, texts in zip(drawn, found, strict=True)]


def worst_mistakes(split: EmbeddedSplit) -> list[Example]:
    """The largest errors of the grade first, among equal ones those that the model was surest of.

    Returns:
        of each its `row` in the split, `img_path`, `text`, the grades `actual` and `predicted`, and the `probability`
        of the predicted one.
    """
    grades = dict(zip(split.graded.tolist(), split.grades.tolist(), strict=True))
    return [
        _example(split, row)
        | {
            "actual": grades[row],
            "predicted": int(split.predicted[row]),
            "probability": float(split.grade_probabilities[row, split.predicted[row]]),
        }
        for row in worst_grades(split, MISTAKES_SHOWN)
    ]


def _example(split: EmbeddedSplit, row: int) -> Example:
    return {"row": int(row), "img_path": str(split.rows["img_path"].iloc[row]), "text": split.texts[row]}


def _draw_halves(is_hit: np.ndarray, count: int) -> np.ndarray:
    """Row numbers, half where `is_hit` (N,) is true and half where not; more of one where the other is rare."""
    rng = np.random.default_rng(SEED)
    hits = rng.permutation(np.flatnonzero(is_hit))
    misses = rng.permutation(np.flatnonzero(~is_hit))
    miss_count = min(len(misses), max(count // 2, count - len(hits)))
    return np.concatenate([hits[: count - miss_count], misses[:miss_count]]).astype(np.int64)
