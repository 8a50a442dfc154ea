"""The expectation over groups, against every group there is."""

from itertools import combinations

import numpy as np
import pytest

from knee_siglip.metrics.expectation import expected_contrastive_accuracy
from knee_siglip.metrics.matching.correctness import Correct
from knee_siglip.metrics.matching.retrieval import contrastive_accuracy

ROWS = 7


def embeds(seed: int, kinds: int) -> np.ndarray:
    """(7, 3) of so many distinct directions."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(kinds, 3))[rng.integers(kinds, size=ROWS)]
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def over_every_group(images: np.ndarray, texts: np.ndarray, correct: Correct, size: int) -> float:
    credits = []
    for row in range(ROWS):
        for others in combinations(sorted(set(range(ROWS)) - {row}), size - 1):
            rows = np.array([row, *others])
            right = correct.among(rows)
            scores = np.round(images[rows] @ texts[rows].T, 6)
            for known, hits in ((scores[0], right[0]), (scores[:, 0], right[:, 0])):
                best = known == known.max()
                credits.append((best & hits).sum() / best.sum())
    return float(np.mean(credits))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("kinds", [1, 2, 7])
@pytest.mark.parametrize("studies", [None, np.array([0, 0, 1, 2, 3, 3, 4])])
def test_it_is_the_mean_over_every_group(size, kinds, studies):
    images, texts = embeds(1, kinds), embeds(2, kinds)
    correct = Correct(np.array([0, 1, 1, 2, 3, 4, 4]), studies)
    expected = over_every_group(images, texts, correct, size)
    assert expected_contrastive_accuracy(images, texts, correct, size) == pytest.approx(expected)


def test_shuffled_batches_are_draws_of_it():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(100, 8))
    images = texts + rng.normal(size=(100, 8))
    images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    correct = Correct(np.arange(100) // 2)
    draws = [contrastive_accuracy(images, texts, correct, 16, seed) for seed in range(200)]
    found = expected_contrastive_accuracy(images, texts, correct, 16)
    assert np.mean(draws) == pytest.approx(found, abs=4 * np.std(draws) / np.sqrt(200))


def test_more_than_there_is_are_all_and_nothing_is_undefined():
    images, texts = embeds(1, 7), embeds(2, 7)
    correct = Correct(np.arange(ROWS))
    everything = contrastive_accuracy(images, texts, correct, 64)
    assert expected_contrastive_accuracy(images, texts, correct, 64) == pytest.approx(everything)
    assert np.isnan(expected_contrastive_accuracy(images[:0], texts[:0], Correct(np.arange(0))))
