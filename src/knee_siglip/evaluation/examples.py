"""Single images that the report shows: what retrieval finds for some of them, and the worst mistakes of the grade."""

from typing import Any

import numpy as np

from knee_siglip.evaluation.case_maps import worst_grades
from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.metrics.matching.similarity import cosine_scores

TEXTS_SHOWN = 5
MISTAKES_SHOWN = 8
SEED = 0

Example = dict[str, Any]


def gallery(split: EmbeddedSplit, count: int) -> list[Example]:
    """Draw `count` images by a fixed seed, half of them with a right text on top as far as there are enough of both.

    Returns:
        of each its `row` in the split, `img_path`, `text`, and the texts `found` for it, the most similar first:
        `text`, `similarity` (cosine), `right`, and the `count` of rows that have this text.
    """
    texts = np.array(split.texts, dtype=object)
    distinct, firsts, counts = np.unique(texts, return_index=True, return_counts=True)
    is_hit = split.searches["image_to_text"].recall_at(1) >= 0.5
    drawn = _draw_halves(is_hit, count)
    scores = cosine_scores(split.image_embeds[drawn], split.text_embeds[firsts])
    examples = []
    for row, similarities in zip(drawn, scores, strict=True):
        right = set(texts[split.study_ids == split.study_ids[row]])
        best = np.argsort(-similarities, kind="stable")[:TEXTS_SHOWN]
        found = [
            {
                "text": distinct[place],
                "right": distinct[place] in right,
                "similarity": float(similarities[place]),
                "count": int(counts[place]),
            }
            for place in best
        ]
        examples.append(_example(split, row) | {"found": found})
    return examples


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
