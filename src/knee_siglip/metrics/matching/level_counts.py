"""How many candidates score above a level, and at it: exact counts at the speed of float32 matrix products.

The levels are those of `score_levels`. A float32 product is off by less than a known margin, which decides nearly every
comparison; the few candidates nearer to the level than that are scored again, exactly.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knee_siglip.metrics.matching.similarity import SCORE_DECIMALS, score_levels

CANDIDATES_AT_ONCE = 32768
"""Columns of the score matrix held in memory; a row of them fits into a core's own cache."""

CROWDED = 1 / 32
"""Share of doubtful candidates above which a float64 product is cheaper than scoring them one by one."""

LEVELS_AT_ONCE = 4096
"""Levels whose doubtful candidates are held in memory."""

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
    """(N, D), L2-normalised, without its repetitions: rows of equal texts, or of a model that gives a constant."""
    assert np.linalg.norm(embeds, axis=1).max(initial=0) < 1.001, "the margin of a product is that of unit vectors"
    numbers: dict[bytes, int] = {}
    number_of = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in embeds], dtype=np.int64)
    _, first, copies = np.unique(number_of, return_index=True, return_counts=True)
    order = np.argsort(-copies, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return DistinctRows(embeds[first[order]], copies[order], place[number_of])


def count_at_levels(
    queries: np.ndarray, candidates: DistinctRows, asked: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each of T levels of some query: how many candidates, copies included, score higher, and exactly there.

    Memory is bounded by `CANDIDATES_AT_ONCE` times the queries given at once.

    Args:
        queries: (Q, D), L2-normalised.
        candidates: L2-normalised.
        asked: (T,) row number of the query.
        levels: (T,) as `score_levels` gives them.

    Returns:
        (T,) counts above the level, and (T,) at it.
    """
    counts = np.zeros((2, len(levels)), np.int64)
    for start in range(0, len(candidates.embeds), CANDIDATES_AT_ONCE):
        part = slice(start, start + CANDIDATES_AT_ONCE)
        chunk = _Chunk(queries, candidates.embeds[part], candidates.copies[part], asked, levels)
        crowded = chunk.add_counts(counts, np.arange(len(levels)), np.float32)
        if len(crowded):
            chunk.add_counts(counts, crowded, np.float64)
    return counts[0], counts[1]


@dataclass(frozen=True)
class _Chunk:
    """Some of the candidates, embeds (V, D) and copies (V,), beside what is asked of them, as in `count_at_levels`."""

    queries: np.ndarray
    embeds: np.ndarray
    copies: np.ndarray
    asked: np.ndarray
    levels: np.ndarray

    @cached_property
    def _repeats(self) -> np.ndarray:
        """(R,) copies beyond the first, of the candidates that have any; these come first."""
        return self.copies[self.copies > 1] - 1

    def add_counts(self, counts: np.ndarray, numbers: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
        """Add to `counts` (2, T) at the `numbers` (S,) of levels; returns those for which float32 is too coarse."""
        rows, row_of = np.unique(self.asked[numbers], return_inverse=True)
        scores = np.matmul(self.queries[rows].astype(dtype, copy=False), self.embeds.astype(dtype, copy=False).T)
        crowded: list[int] = []
        for start in range(0, len(numbers), LEVELS_AT_ONCE):
            part = slice(start, start + LEVELS_AT_ONCE)
            crowded += self._compare(counts, numbers[part], scores, row_of[part])
        return np.array(crowded, dtype=np.int64)

    def _compare(self, counts: np.ndarray, numbers: np.ndarray, scores: np.ndarray, row_of: np.ndarray) -> list[int]:
        """As `add_counts`, by the rows `row_of` (S,) of `scores`."""
        margin = _margin(scores.dtype, self.queries.shape[1])
        coarse = margin >= STEP / 2
        near, crowded = {}, []
        for number, level, row in zip(numbers.tolist(), self.levels[numbers].tolist(), row_of.tolist(), strict=True):
            above = scores[row] > (level + 0.5) * STEP + margin
            doubtful = (scores[row] >= (level - 0.5) * STEP - margin) ^ above
            if not coarse:
                equal = np.abs(scores[row] - level * STEP) < STEP / 2 - margin
                counts[1, number] += self._total(equal)
                doubtful ^= equal
            close = np.flatnonzero(doubtful)
            if coarse and len(close) > CROWDED * len(doubtful):
                crowded.append(number)
                continue
            counts[0, number] += self._total(above)
            near[number] = close
        self._add_exactly(counts, near)
        return crowded

    def _add_exactly(self, counts: np.ndarray, near: dict[int, np.ndarray]) -> None:
        """The candidates that are `near` to a level, level by level."""
        numbers = np.repeat(np.array(list(near), dtype=np.int64), [len(candidates) for candidates in near.values()])
        candidates = np.concatenate(list(near.values()) or [np.zeros(0, np.int64)])
        distance = score_levels(self.queries, self.embeds, self.asked[numbers], candidates) - self.levels[numbers]
        for side, chosen in enumerate((distance > 0, distance == 0)):
            np.add.at(counts[side], numbers[chosen], self.copies[candidates[chosen]])

    def _total(self, chosen: np.ndarray) -> int:
        """Candidates, copies included, where `chosen` (V,) is true; faster than a product where few are repeated."""
        return int(np.count_nonzero(chosen) + self._repeats[chosen[: len(self._repeats)]].sum())


def _margin(dtype: np.dtype, width: int) -> float:
    """What a product of two unit vectors (width,), summed in any order, differs from `score_levels`'s at most.

    Each of the two is off by width * eps / 2 (Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. 3.5);
    the 8 covers vectors and levels rounded to `dtype`, and lengths that are 1 only nearly.
    """
    return float((width + 8) * np.finfo(dtype).eps)
