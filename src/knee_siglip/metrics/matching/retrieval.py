"""Contrastive accuracy and retrieval, aware of duplicate texts, of studies and of ties.

Row i of the images and row i of the texts are a pair; what else is correct, `Correct` says. Ties: every
order of equal scores is taken as equally likely, and each metric is its expected value over these orders. Constant
embeddings therefore score exactly at chance, and the order of the rows never matters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import digamma

from knee_siglip.metrics.matching.correctness import Correct, CorrectCandidates
from knee_siglip.metrics.matching.similarity import DistinctRows, cosine_scores, distinct_rows

BATCH_SIZE = 64
QUERIES_AT_ONCE = 64
"""Rows of the score matrix held in memory."""

BatchScores = Callable[[np.ndarray], np.ndarray]
"""Rows (B,) to the scores (B, B) of their images (down) against their texts (across)."""


@dataclass(frozen=True)
class ContrastiveCredit:
    """How likely each row's best text, and its text's best image, is a correct one.

    rows: (M,) the rows that were in a batch. image_to_text, text_to_image: (M,) in 0-1. batch_size: of each batch.
    """

    rows: np.ndarray
    image_to_text: np.ndarray
    text_to_image: np.ndarray
    batch_size: int

    @property
    def accuracy(self) -> float:
        """Mean over rows and directions; NaN without rows."""
        return float(((self.image_to_text + self.text_to_image) / 2).mean()) if len(self.rows) else float("nan")


@dataclass(frozen=True)
class FirstCorrect:
    """Where the best-ranked correct candidate of each of Q queries stands, and how precise the whole ranking is.

    higher: (Q,) candidates with a higher score. tied_wrong, tied_correct: (Q,) candidates with the same score, wrong
    ones and correct ones (itself included). correct: (Q,) all correct candidates, at whatever score. precision_sum:
    (Q,) the precisions at their positions, added up, in expectation.
    """

    higher: np.ndarray
    tied_wrong: np.ndarray
    tied_correct: np.ndarray
    correct: np.ndarray
    precision_sum: np.ndarray

    def expected_rank(self) -> np.ndarray:
        """(Q,) mean position over the orders of the tie, from 1; the usual mid-rank where one candidate is correct."""
        return self.higher + 1 + self.tied_wrong / (self.tied_correct + 1)

    def recall_at(self, k: int) -> np.ndarray:
        """(Q,) probability that the position is k or better: 1 minus that of drawing only wrong ones from the tie."""
        draws = np.clip(k - self.higher, 0, None)
        only_wrong = np.ones(len(draws))
        for drawn in range(int(draws.max(initial=0))):
            left = np.clip(self.tied_wrong - drawn, 0, None)
            only_wrong = np.where(drawn < draws, only_wrong * left / (left + self.tied_correct), only_wrong)
        return 1 - only_wrong

    def expected_reciprocal_rank(self) -> np.ndarray:
        """(Q,) mean of 1 / position over the orders of the tie."""
        kinds = np.stack([self.higher, self.tied_wrong, self.tied_correct], axis=1)
        distinct, kind_of = np.unique(kinds, axis=0, return_inverse=True)
        values = np.array([_reciprocal_rank(*kind) for kind in distinct.tolist()])
        return values[kind_of.reshape(-1)]

    def average_precision(self) -> np.ndarray:
        """(Q,) mean, over the correct candidates, of the share of correct ones down to each one's position."""
        return self.precision_sum / self.correct


def number_texts(texts: Sequence[str] | np.ndarray) -> np.ndarray:
    """(N,) integers, equal where the texts are equal; what already is an integer array is returned as it is."""
    if isinstance(texts, np.ndarray) and np.issubdtype(texts.dtype, np.integer):
        return texts
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def shuffled_batches(count: int, batch_size: int = BATCH_SIZE, seed: int = 0) -> list[np.ndarray]:
    """Rows 0 ... count-1, shuffled, in full batches; the incomplete last one is left out.

    With fewer rows than `batch_size` all of them are the one batch.
    """
    order = np.random.default_rng(seed).permutation(count)
    size = max(1, min(batch_size, count))
    return [order[start : start + size] for start in range(0, count - size + 1, size)]


def contrastive_credit(
    batch_scores: BatchScores, correct: Correct, batch_size: int = BATCH_SIZE, seed: int = 0
) -> ContrastiveCredit:
    """Top-1 both ways inside shuffled batches."""
    batches = shuffled_batches(len(correct), batch_size, seed)
    to_text, to_image = [], []
    for rows in batches:
        scores = batch_scores(rows)
        right = correct.among(rows)
        to_text.append(_top1_credit(scores, right))
        to_image.append(_top1_credit(scores.T, right.T))
    return ContrastiveCredit(
        rows=np.concatenate(batches or [np.zeros(0, dtype=np.int64)]),
        image_to_text=np.concatenate(to_text or [np.zeros(0)]),
        text_to_image=np.concatenate(to_image or [np.zeros(0)]),
        batch_size=len(batches[0]) if batches else 0,
    )


def embedding_scores(image_embeds: np.ndarray, text_embeds: np.ndarray) -> BatchScores:
    """Cosines of L2-normalised (N, D) embeddings, for `contrastive_credit`."""
    assert image_embeds.shape == text_embeds.shape, (image_embeds.shape, text_embeds.shape)
    return lambda rows: cosine_scores(image_embeds[rows], text_embeds[rows])


def contrastive_accuracy(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    correct: Correct,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> float:
    """Mean of image-to-text and text-to-image top-1 inside shuffled batches.

    image_embeds, text_embeds: (N, D), L2-normalised; row i belongs to text i.
    """
    return contrastive_credit(embedding_scores(image_embeds, text_embeds), correct, batch_size, seed).accuracy


def find_first_correct(queries: np.ndarray, candidates: np.ndarray, correct: Correct) -> FirstCorrect:
    """Rank all candidates (N, D) for each query (N, D), both L2-normalised.

    `QUERIES_AT_ONCE` bounds the memory. Repeated embeddings are scored once; queries that are alike in their embedding
    and in what is correct for them are judged once.
    """
    assert queries.shape == candidates.shape == (len(correct), queries.shape[1]), (queries.shape, candidates.shape)
    asked, offered = distinct_rows(queries), distinct_rows(candidates)
    _, alike = np.unique(correct.alike, return_inverse=True)
    keys = asked.number_of * (len(correct) + 1) + alike
    _, rows, kind_of = np.unique(keys, return_index=True, return_inverse=True)
    rows_of = np.split(rows, np.cumsum(np.bincount(asked.number_of[rows], minlength=1))[:-1])
    judge = CorrectCandidates(correct, offered.number_of)
    standings: list[tuple[float, ...]] = []
    for start in range(0, len(asked.embeds), QUERIES_AT_ONCE):
        chunk = slice(start, start + QUERIES_AT_ONCE)
        standings += _stand(asked.embeds[chunk], rows_of[chunk], offered, judge)
    table = np.array(standings, dtype=np.float64).reshape(-1, 5)[kind_of]
    higher, tied_wrong, tied_correct, all_correct = table[:, :4].astype(np.int64).T
    return FirstCorrect(higher, tied_wrong, tied_correct, all_correct, precision_sum=table[:, 4])


def retrieval_metrics(found: FirstCorrect) -> dict[str, float]:
    """recall_at_1, recall_at_5, recall_at_10, median_rank (of expected ranks), mrr and map; none without queries."""
    if not len(found.higher):
        return {}
    recalls = {f"recall_at_{k}": float(found.recall_at(k).mean()) for k in (1, 5, 10)}
    return recalls | {
        "median_rank": float(np.median(found.expected_rank())),
        "mrr": float(found.expected_reciprocal_rank().mean()),
        "map": float(found.average_precision().mean()),
    }


def perfect_reader_scores(alternatives: Sequence[Mapping[str, float]], texts: Sequence[str]) -> np.ndarray:
    """Scores (N, N) of a reader who knows of each image with what probability each text was written about it.

    Args:
        alternatives: per image, text -> probability.
        texts: (N,) what was written, normalised in the same way.

    `contrastive_credit` over these is the ceiling that the synonyms in the texts leave to any model.
    """
    ids = number_texts(texts)
    distinct = list(dict.fromkeys(texts))
    scores = np.array([[known.get(text, 0.0) for text in distinct] for known in alternatives], dtype=np.float64)
    return scores.reshape(len(texts), len(distinct))[:, ids]


def _top1_credit(scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(Q, C) scores and correctness to (Q,): the share of correct ones among the best-scored candidates."""
    best = scores == scores.max(axis=1, keepdims=True)
    return (best & correct).sum(axis=1) / best.sum(axis=1)


@dataclass(frozen=True)
class _Ties:
    """Scores, worst first; so many candidates have a higher one, above (K,), and the same, tied (K,)."""

    above: np.ndarray
    tied: np.ndarray

    @cached_property
    def reciprocals(self) -> np.ndarray:
        """(K,) sum of 1 / position over the positions of each tie: a difference of harmonic numbers."""
        return digamma(self.above + self.tied + 1) - digamma(self.above + 1)

    @cached_property
    def precisions_within(self) -> np.ndarray:
        """(K,) sum of (position in the tie - 1) / position, divided by (candidates of the tie - 1); 0 with only one."""
        return (self.tied - (self.above + 1) * self.reciprocals) / np.maximum(self.tied - 1, 1)

    def standing(self, correct: np.ndarray) -> tuple[float, ...]:
        """Fields of `FirstCorrect` of a query that has these ties, of which so many (K,) candidates are correct.

        At position p of a tie of m candidates, c of them correct, that begins after N candidates, r of them correct, a
        correct one stands with probability c / m, and then (p - N - 1) (c - 1) / (m - 1) others of the tie stand
        before it, in the mean. The precisions of the tie are therefore expected to add up to
        sum over p of c / m (r + 1 + (p - N - 1) (c - 1) / (m - 1)) / p, which has a closed form in sum of 1 / p.
        Source: McSherry & Najork 2008 (ECIR, doi 10.1007/978-3-540-78646-7_38), average precision.
        """
        best = np.flatnonzero(correct)[-1]
        all_correct = correct.sum()
        correct_above = all_correct - np.cumsum(correct)
        within = (correct - 1) * self.precisions_within
        precisions = correct / self.tied * ((correct_above + 1) * self.reciprocals + within)
        higher, tied, tied_correct = self.above[best], self.tied[best], correct[best]
        return higher, tied - tied_correct, tied_correct, all_correct, precisions.sum()


def _stand(
    queries: np.ndarray, rows_of: Sequence[np.ndarray], offered: DistinctRows, judge: CorrectCandidates
) -> list[tuple[float, ...]]:
    """Standings of the rows of distinct queries (Q, D); a query has several, where they differ in what is correct."""
    place_of = np.zeros(len(offered.embeds), np.int64)
    standings = []
    for scores, rows in zip(cosine_scores(queries, offered.embeds), rows_of, strict=True):
        judged = judge.of_any(rows)
        levels, place_of[judged] = np.unique(scores[judged], return_inverse=True)
        ties = _Ties(*offered.count_at_levels(scores, levels))
        for row in rows:
            numbers, copies = judge.of(row)
            correct = np.bincount(place_of[numbers], weights=copies, minlength=len(levels))
            standings.append(ties.standing(correct))
    return standings


def _reciprocal_rank(higher: int, tied_wrong: int, tied_correct: int) -> float:
    """Sum over j of P(j wrong ones come before the first correct one) / (higher + j + 1)."""
    wrong_left = tied_wrong - np.arange(tied_wrong)
    all_wrong = np.concatenate([[1.0], np.cumprod(wrong_left / (wrong_left + tied_correct)), [0.0]])
    return float(((all_wrong[:-1] - all_wrong[1:]) / (higher + 1 + np.arange(tied_wrong + 1))).sum())
