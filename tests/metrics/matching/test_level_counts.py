"""Exact counts at levels against the full matrix of rounded scores, where float32 alone would be wrong."""

import numpy as np
import pytest

from knee_siglip.metrics.matching import level_counts
from knee_siglip.metrics.matching.level_counts import count_at_levels, distinct_rows
from knee_siglip.metrics.matching.similarity import cosine_scores, score_levels


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_equals_full_matrix(queries, candidates, per_query=4):
    """Counts at the levels of some candidates, and whether they are those of the full matrix."""
    rng = np.random.default_rng(0)
    asked = np.arange(len(queries)).repeat(per_query)
    scores = np.rint(cosine_scores(queries, candidates) * 1e6)
    levels = scores[asked, rng.integers(0, len(candidates), len(asked))].astype(np.int64)
    above, same = count_at_levels(queries, distinct_rows(candidates), asked, levels)
    np.testing.assert_array_equal(above, (scores[asked] > levels[:, None]).sum(axis=1))
    np.testing.assert_array_equal(same, (scores[asked] == levels[:, None]).sum(axis=1))
    return above, same


class TestCountAtLevels:
    @pytest.mark.parametrize("width", [2, 16, 300])
    def test_equals_the_full_matrix(self, width):
        rng = np.random.default_rng(width)
        assert_equals_full_matrix(unit(rng.normal(size=(20, width))), unit(rng.normal(size=(500, width))))

    def test_copies_count_each(self):
        rng = np.random.default_rng(0)
        candidates = unit(rng.normal(size=(60, 16)))[rng.integers(0, 60, 400)]
        _, same = assert_equals_full_matrix(unit(rng.normal(size=(20, 16))), candidates)
        assert same.max() > 5

    @pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 1e-6])
    def test_nearly_constant_embeddings_too(self, spread):
        """Scores nearer to each other than float32 tells: all are doubtful, many are equal after rounding."""
        rng = np.random.default_rng(0)
        queries, candidates = (unit(1 + spread * rng.normal(size=(count, 32))) for count in (15, 300))
        assert_equals_full_matrix(queries, candidates)

    def test_candidates_at_the_edge_of_a_level_are_decided_exactly(self):
        """Cosines that differ by a tenth of a level, which a float32 product of this width cannot tell."""
        angle = np.arccos(0.3) + np.arange(-200, 200) * 1e-7
        turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))
        plane = np.hstack([np.cos(angle)[:, None], np.sin(angle)[:, None], np.zeros((400, 62))])
        assert_equals_full_matrix((turn[:1]).astype(np.float64), plane @ turn, per_query=50)

    @pytest.mark.parametrize("crowded", [0, 1])
    def test_crowded_or_one_by_one_is_the_same(self, crowded, monkeypatch):
        """The float64 product and the single scores are two ways to the same counts."""
        monkeypatch.setattr(level_counts, "CROWDED", crowded)
        rng = np.random.default_rng(0)
        queries, candidates = (unit(1 + 1e-2 * rng.normal(size=(count, 32))) for count in (15, 300))
        assert_equals_full_matrix(queries, candidates)

    def test_nothing_asked_is_nothing_counted(self):
        nothing = np.zeros(0, dtype=np.int64)
        above, same = count_at_levels(unit(np.eye(3)), distinct_rows(unit(np.eye(3))), nothing, nothing)
        assert len(above) == len(same) == 0


class TestDistinctRows:
    def test_most_frequent_ones_come_first(self):
        rows = unit(np.eye(3))[[0, 1, 1, 2, 1, 2]]
        distinct = distinct_rows(rows)
        np.testing.assert_array_equal(distinct.embeds[distinct.number_of], rows)
        assert distinct.copies.tolist() == [3, 2, 1]

    def test_no_rows(self):
        distinct = distinct_rows(np.zeros((0, 4), dtype=np.float32))
        assert (distinct.embeds.shape, len(distinct.copies), len(distinct.number_of)) == ((0, 4), 0, 0)


class TestScoreLevels:
    def test_are_the_rounded_cosines(self):
        rng = np.random.default_rng(0)
        queries, candidates = unit(rng.normal(size=(7, 24))), unit(rng.normal(size=(9, 24)))
        asked, offered = np.indices((7, 9)).reshape(2, -1)
        levels = score_levels(queries, candidates, asked, offered)
        np.testing.assert_allclose(levels.reshape(7, 9) / 1e6, cosine_scores(queries, candidates), atol=1e-12)

    def test_equal_candidates_have_equal_levels_whatever_stands_beside_them(self, monkeypatch):
        """Scores that lie on the border between two levels, where the last bit of a sum decides."""
        angle = np.arccos((np.arange(500) + 0.5) * 1e-6)
        turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(37, 37)))
        candidates = np.hstack([np.cos(angle)[:, None], np.sin(angle)[:, None], np.zeros((500, 35))]) @ turn
        every = np.arange(500)
        together = score_levels(turn[:1], candidates, np.zeros(500, dtype=np.int64), every)
        for size in (1, 3, 64):
            monkeypatch.setattr("knee_siglip.metrics.matching.similarity.PAIRS_AT_ONCE", size)
            np.testing.assert_array_equal(score_levels(turn[:1], candidates, np.zeros(500, np.int64), every), together)
