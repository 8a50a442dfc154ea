"""How many candidates score above a level, and at it: exact counts at the speed of float32 matrix products.

The levels are those of `score_levels`. A float32 product is off by less than a known margin, which decides nearly every
comparison; the few candidates nearer to the level than that are scored again, exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knee_siglip.metrics.similarity import SCORE_DECIMALS, score_levels

CANDIDATES_AT_ONCE = 32768
"""Columns of the score matrix held in memory; a row of them fits into a core's own cache."""

CROWDED = 1 / 32
"""Share of doubtful candidates above which a float64 product is cheaper than scoring them one by one."""

STEP = 10.0**-SCORE_DECIMALS


@dataclass(frozen=True)
class DistinctRows:
    """Embeddings without repetition, the most frequent ones first.

    embeds: (U, D). copies: (U,) how often each occurs. number_of: (N,) which of them each original row is.
    """

    embeds: np.ndarray
    copies: np.ndarray
    number_of: np.ndarray


def distinct_rows(embeds: np.ndarray) -> DistinctRows:
    """(N, D) without its repetitions, bit by bit: rows of equal texts, or of a model that gives a constant."""
    numbers: dict[bytes, int] = {}
    number_of = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in embeds], dtype=np.int64)
    _, first, copies = np.unique(number_of, return_index=True, return_counts=True)
    order = np.argsort(-copies, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return DistinctRows(embeds[first[order]], copies[order], place[number_of])


@dataclass(frozen=True)
class _Chunk:
    """Some of the candidates: embeds (V, D), copies (V,), those that occur more than once first."""

    embeds: np.ndarray
    copies: np.ndarray

    @cached_property
    def repeated(self) -> np.ndarray:
        """(R,) copies beyond the first, of the candidates that have any."""
        return self.copies[self.copies > 1] - 1

    def total(self, chosen: np.ndarray) -> int:
        """Candidates, copies included, where `chosen` (V,) is true; faster than a product where few are repeated."""
        return int(np.count_nonzero(chosen) + self.repeated[chosen[: len(self.repeated)]].sum())

    def count(self, query: np.ndarray, scores: np.ndarray, levels: np.ndarray) -> np.ndarray | None:
        """(2, K) candidates above, and at, each level (K,) of the query (D,); None where exact scores take too long.

        scores: (V,) in the precision of their dtype.
        """
        margin = _margin(scores.dtype, len(query))
        most = CROWDED * len(scores) if scores.dtype == np.float32 else len(scores)
        counts = np.zeros((2, len(levels)), np.int64)
        for place, level in enumerate(levels.tolist()):
            above = scores > (level + 0.5) * STEP + margin
            doubtful = np.flatnonzero((scores >= (level - 0.5) * STEP - margin) ^ above)
            if len(doubtful) > most:
                return None
            higher, same = self._decide(query, doubtful, np.abs(scores[doubtful] - level * STEP), level, margin)
            counts[:, place] = self.total(above) + higher, same
        return counts

    def _decide(
        self, query: np.ndarray, doubtful: np.ndarray, distances: np.ndarray, level: int, margin: float
    ) -> tuple[int, int]:
        """How many of the `doubtful` candidates are above, and at, the level; `distances` (V,) are from the level."""
        at_level = distances < STEP / 2 - margin
        rest = doubtful[~at_level]
        exact, copies = score_levels(query, self.embeds[rest]), self.copies[rest]
        same = self.copies[doubtful[at_level]].sum() + copies[exact == level].sum()
        return int(copies[exact > level].sum()), int(same)


def count_at_levels(queries: np.ndarray, candidates: DistinctRows, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each query and each of its levels: how many candidates, copies included, score higher, and exactly there.

    Args:
        queries: (Q, D), L2-normalised.
        candidates: L2-normalised.
        levels: for each query (K,) levels as `score_levels` gives them; K may differ.

    Returns:
        For each query (2, K): counts above, and at the level.
    """
    counts = [np.zeros((2, len(wanted)), np.int64) for wanted in levels]
    for start in range(0, len(candidates.embeds), CANDIDATES_AT_ONCE):
        part = slice(start, start + CANDIDATES_AT_ONCE)
        chunk = _Chunk(candidates.embeds[part], candidates.copies[part])
        crowded = list(range(len(queries)))
        for dtype in (np.float32, np.float64):
            asked, crowded = crowded, []
            scores = np.matmul(queries[asked].astype(dtype, copy=False), chunk.embeds.astype(dtype, copy=False).T)
            for query, row in zip(asked, scores, strict=True):
                found = chunk.count(queries[query], row, levels[query])
                if found is None:
                    crowded.append(query)
                else:
                    counts[query] += found
    return counts


def _margin(dtype: np.dtype, width: int) -> float:
    """What a product of two unit vectors (width,), summed in any order, differs from `score_levels`'s at most.

    Each of the two is off by width * eps / 2 (Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. 3.5);
    the 8 covers vectors and levels rounded to `dtype`, and lengths that are 1 only nearly.
    """
    return float((width + 8) * np.finfo(dtype).eps)
