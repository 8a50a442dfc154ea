"""Cosine scores in which equal means equal: rounded, and repeated candidates scored once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

SCORE_DECIMALS = 6
"""Finer differences of a cosine are float32 rounding noise: without this, a collapsed model is ranked by that noise."""

TEXTS_SHOWN = 5


def cosine_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2-normalised (Q, D) and (C, D) to cosines (Q, C), float64, rounded to `SCORE_DECIMALS`."""
    assert queries.shape[1] == candidates.shape[1], (queries.shape, candidates.shape)
    cosines = queries.astype(np.float64, copy=False) @ candidates.astype(np.float64, copy=False).T
    return np.round(cosines, SCORE_DECIMALS, out=cosines)


def similar_texts(
    rows: np.ndarray,
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    texts: Sequence[str],
    text_ids: np.ndarray,
    study_ids: np.ndarray,
) -> list[list[dict[str, Any]]]:
    """Of each image in `rows` (R,) the distinct texts of all N rows that are most similar to it, best first.

    image_embeds, text_embeds: (N, D). text_ids, study_ids: (N,), equal where text or study is.

    Returns:
        of each text `text`, `similarity` (cosine), `right` (one of the image's study) and its `count` of rows.
    """
    distinct, firsts, counts = np.unique(text_ids, return_index=True, return_counts=True)
    found = []
    for row, scores in zip(rows, cosine_scores(image_embeds[rows], text_embeds[firsts]), strict=True):
        right = np.isin(distinct, text_ids[study_ids == study_ids[row]])
        found.append(
            [
                {
                    "text": texts[firsts[place]],
                    "similarity": round(float(scores[place]), 3),
                    "right": bool(right[place]),
                    "count": int(counts[place]),
                }
                for place in np.argsort(-scores, kind="stable")[:TEXTS_SHOWN]
            ]
        )
    return found


@dataclass(frozen=True)
class DistinctRows:
    """Embeddings without repetition, the most frequent ones first.

    embeds: (U, D), float64. copies: (U,) how often each occurs. number_of: (N,) which of them each original row is.
    """

    embeds: np.ndarray
    copies: np.ndarray
    number_of: np.ndarray

    @cached_property
    def _repeats(self) -> np.ndarray:
        """(R,) copies beyond the first, of the candidates that have any; these come first."""
        return self.copies[self.copies > 1] - 1

    def count(self, chosen: np.ndarray) -> int:
        """Rows, copies included, where `chosen` (U,) is true; faster than a product where few are repeated."""
        return int(np.count_nonzero(chosen) + self._repeats[chosen[: len(self._repeats)]].sum())

    def count_at_levels(self, scores: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each of K levels: how many rows, copies included, score higher, and exactly there; (K,) each.

        scores: (U,) of one query, rounded, so that equal means equal.
        """
        above = [self.count(scores > level) for level in levels]
        tied = [self.count(scores == level) for level in levels]
        return np.array(above, dtype=np.int64), np.array(tied, dtype=np.int64)


def distinct_rows(embeds: np.ndarray) -> DistinctRows:
    """(N, D) without its repetitions: rows of equal texts, or of a model that gives a constant."""
    numbers: dict[bytes, int] = {}
    number_of = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in embeds], dtype=np.int64)
    _, first, copies = np.unique(number_of, return_index=True, return_counts=True)
    order = np.argsort(-copies, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return DistinctRows(embeds[first[order]].astype(np.float64), copies[order], place[number_of])
