"""Contrastive accuracy in expectation over all groups of rows, where shuffled batches are one draw of them."""

import numpy as np

from knee_siglip.metrics.matching.correctness import Correct
from knee_siglip.metrics.matching.retrieval import BATCH_SIZE, QUERIES_AT_ONCE
from knee_siglip.metrics.matching.similarity import cosine_scores


def expected_contrastive_accuracy(
    image_embeds: np.ndarray, text_embeds: np.ndarray, correct: Correct, group: int = BATCH_SIZE
) -> float:
    """Mean top-1 of both directions over every group that holds a row and `group - 1` others, each alike likely.

    No row is left out and no shuffle is drawn. image_embeds, text_embeds: (N, D), L2-normalised; row i belongs to text
    i. NaN without rows.
    """
    count = len(correct)
    if not count:
        return float("nan")
    size = min(group, count)
    directions = ((image_embeds, text_embeds), (text_embeds, image_embeds))
    credit = 0.0
    for queries, candidates in directions:
        for start in range(0, count, QUERIES_AT_ONCE):
            rows = np.arange(start, min(start + QUERIES_AT_ONCE, count))
            right = correct.among(rows, np.arange(count))
            for row, scores, known in zip(rows, cosine_scores(queries[rows], candidates), right, strict=True):
                credit += _expected_credit(scores, known, int(row), size)
    return credit / (2 * count)


def _expected_credit(scores: np.ndarray, right: np.ndarray, own: int, size: int) -> float:
    """Of one query: its scores (N,), which candidates are right (N,), the row of its own one, always in the group.

    The best of the group is of a level of scores where none above it was drawn, but one of it; which of a level's
    candidates, is alike likely. Of its own level, its own one is drawn with k of the others: with a share r of right
    ones among these, (1 + k r) / (1 + k) of the drawn are right, of which E[1 / (1 + k)] is known in closed form for a
    hypergeometric k.
    """
    others = len(scores) - 1
    left = others - np.arange(len(scores) - 1)
    none_of = np.concatenate([[1.0], np.cumprod(np.clip(left - (size - 1), 0, None) / left)])  # so many are not drawn
    above, tied = scores > scores[own], scores == scores[own]
    _, level, sizes = np.unique(-scores[above], return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    shares = np.bincount(level, weights=right[above], minlength=len(sizes)) / np.maximum(sizes, 1)
    credit = float((shares * (none_of[ends - sizes] - none_of[ends])).sum())
    below, alike = others - int(above.sum()), int(tied.sum()) - 1
    share = (right[tied].sum() - 1) / alike if alike else 1.0
    drawn_from = below + 1 - np.arange(alike + 1)
    nothing = np.prod(np.clip(drawn_from - size, 0, None) / drawn_from)
    alone = (below + 1) / ((alike + 1) * size) * (1 - nothing)
    return credit + float(none_of[int(above.sum())] * (share + (1 - share) * alone))
