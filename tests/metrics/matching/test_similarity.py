"""Counts at levels of candidates without their repetitions, against the full matrix of rounded scores."""

import numpy as np
import pytest

from knee_siglip.metrics.matching.similarity import cosine_scores, distinct_rows


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_equals_full_matrix(queries, candidates, per_query=4):
    """Counts at the levels of some candidates; returns those at the levels themselves."""
    rng = np.random.default_rng(0)
    offered, tied = distinct_rows(candidates), []
    of_distinct = cosine_scores(queries, offered.embeds)
    scores = of_distinct[:, offered.number_of]
    np.testing.assert_allclose(scores, cosine_scores(queries, candidates), atol=1.01e-6)
    for all_scores, distinct_scores in zip(scores, of_distinct, strict=True):
        levels = all_scores[rng.integers(0, len(candidates), per_query)]
        above, same = offered.count_at_levels(distinct_scores, levels)
        np.testing.assert_array_equal(above, (all_scores > levels[:, None]).sum(axis=1))
        np.testing.assert_array_equal(same, (all_scores == levels[:, None]).sum(axis=1))
        tied.extend(same.tolist())
    return tied


class TestCountAtLevels:
    @pytest.mark.parametrize("width", [2, 16, 300])
    def test_equals_the_full_matrix(self, width):
        rng = np.random.default_rng(width)
        assert_equals_full_matrix(unit(rng.normal(size=(20, width))), unit(rng.normal(size=(500, width))))

    def test_copies_count_each(self):
        rng = np.random.default_rng(0)
        candidates = unit(rng.normal(size=(60, 16)))[rng.integers(0, 60, 400)]
        assert max(assert_equals_full_matrix(unit(rng.normal(size=(20, 16))), candidates)) > 5

    @pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
    def test_nearly_constant_embeddings_too(self, spread):
        """Scores nearer to each other than float32 tells: many are equal after rounding."""
        rng = np.random.default_rng(0)
        queries, candidates = (
            unit(1 + spread * rng.normal(size=(15, 32))),
            unit(1 + spread * rng.normal(size=(300, 32))),
        )
        assert_equals_full_matrix(queries, candidates)


class TestDistinctRows:
    def test_most_frequent_ones_come_first(self):
        rows = unit(np.eye(3))[[0, 1, 1, 2, 1, 2]]
        distinct = distinct_rows(rows)
        np.testing.assert_array_equal(distinct.embeds[distinct.number_of], rows)
        assert distinct.copies.tolist() == [3, 2, 1]

    def test_no_rows(self):
        distinct = distinct_rows(np.zeros((0, 4), dtype=np.float32))
        assert (distinct.embeds.shape, len(distinct.copies), len(distinct.number_of)) == ((0, 4), 0, 0)
