"""Contrastive accuracy and retrieval against enumeration, random tie-breaking and chance."""

from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from knee_siglip.metrics.matching.retrieval import (
    Correct,
    contrastive_accuracy,
    contrastive_credit,
    find_first_correct,
    number_texts,
    perfect_reader_scores,
    retrieval_metrics,
    shuffled_batches,
)


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_pairs(count, distinct, seed=0, noise=1.0, width=16):
    """Embeddings that find their text more often than not; equal texts have equal text embeddings."""
    rng = np.random.default_rng(seed)
    anchors = rng.normal(size=(distinct, width))
    ids = rng.integers(0, distinct, count)
    return unit(anchors[ids] + noise * rng.normal(size=(count, width))), unit(anchors)[ids], ids


def one_hot_scores(scores):
    """Embeddings whose cosines are the scores (Q, C) of a few levels: queries unit, candidates padded to length one."""
    queries, candidates = np.eye(len(scores), dtype=np.float32), np.asarray(scores, dtype=np.float32).T / 10
    rest = np.sqrt(1 - (candidates**2).sum(axis=1, keepdims=True))
    return np.hstack([queries, np.zeros((len(queries), 1), dtype=np.float32)]), np.hstack([candidates, rest])


def enumerated_positions(scores, correct):
    """Position of the first correct candidate in every order that the scores allow."""
    orders = [p for p in permutations(range(len(scores))) if all(np.diff([scores[i] for i in p]) <= 0)]
    return np.array([next(place for place, i in enumerate(order, 1) if correct[i]) for order in orders])


def enumerated_precisions(scores, correct):
    """Average precision in every order that the scores allow."""
    orders = np.array([p for p in permutations(range(len(scores))) if all(np.diff([scores[i] for i in p]) <= 0)])
    hits = correct[orders]
    precisions = np.cumsum(hits, axis=1) / np.arange(1, len(scores) + 1)
    return (precisions * hits).sum(axis=1) / correct.sum()


def correct_matrix(text_ids, study_ids=None):
    """(N, N) by definition: the same text, or the same study."""
    studies = np.arange(len(text_ids)) if study_ids is None else study_ids
    return (text_ids[:, None] == text_ids) | (studies[:, None] == studies)


def ranked_at_random(scores, correct, rng):
    """(Q,) first positions and average precisions under one random order of the ties."""
    order = np.lexsort([rng.random(scores.shape), -scores], axis=1)
    hits = np.take_along_axis(correct, order, axis=1)
    precisions = np.cumsum(hits, axis=1) / np.arange(1, scores.shape[1] + 1)
    return hits.argmax(axis=1) + 1, (precisions * hits).sum(axis=1) / hits.sum(axis=1)


class TestRetrieval:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_mean_over_every_order_of_the_ties(self, seed):
        rng = np.random.default_rng(seed)
        ids, studies = rng.integers(0, 3, 6), rng.integers(0, 4, 6)
        scores = rng.integers(0, 3, (6, 6)).astype(float)
        correct = correct_matrix(ids, studies)
        found = find_first_correct(*one_hot_scores(scores), Correct(ids, studies))
        positions = [enumerated_positions(row, right) for row, right in zip(scores, correct, strict=True)]
        np.testing.assert_allclose(found.expected_rank(), [p.mean() for p in positions])
        np.testing.assert_allclose(found.expected_reciprocal_rank(), [(1 / p).mean() for p in positions])
        for k in (1, 2, 3, 5, 6, 10):
            np.testing.assert_allclose(found.recall_at(k), [(p <= k).mean() for p in positions], atol=1e-12)
        precisions = [enumerated_precisions(row, right).mean() for row, right in zip(scores, correct, strict=True)]
        np.testing.assert_allclose(found.average_precision(), precisions)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("strict", [False, True])
    def test_equals_sorting_with_the_ties_in_random_order(self, seed, strict):
        """Duplicates of texts and of images, a cosine grid so coarse that distinct ones tie, studies of two images."""
        rng = np.random.default_rng(seed)
        count = 40
        anchors = np.sign(rng.normal(size=(12, 16)))
        ids = rng.integers(0, 12, count)
        images = unit(anchors[ids] * np.where(rng.random((count, 16)) < 0.25, -1, 1))
        images[5:10], texts = images[4], unit(anchors[ids])
        studies = rng.permutation(count) // 2
        scores = np.round(images.astype(np.float64) @ texts.T.astype(np.float64), 6)
        correct = np.eye(count, dtype=bool) if strict else correct_matrix(ids, studies)
        runs = [ranked_at_random(scores, correct, rng) for _ in range(3000)]
        firsts, precisions = (np.array(runs_of) for runs_of in zip(*runs, strict=True))
        found = find_first_correct(images, texts, Correct(ids, studies, strict))
        np.testing.assert_allclose(found.recall_at(1), (firsts == 1).mean(axis=0), atol=0.04)
        np.testing.assert_allclose(found.recall_at(5), (firsts <= 5).mean(axis=0), atol=0.04)
        np.testing.assert_allclose(found.expected_rank(), firsts.mean(axis=0), atol=0.5)
        np.testing.assert_allclose(found.expected_reciprocal_rank(), (1 / firsts).mean(axis=0), atol=0.03)
        np.testing.assert_allclose(found.average_precision(), precisions.mean(axis=0), atol=0.03)
        assert retrieval_metrics(found)["map"] == pytest.approx(precisions.mean(), abs=0.004)

    def test_without_ties_average_precision_is_that_of_scikit_learn(self):
        images, texts, ids = random_pairs(150, 30, noise=2)
        texts = unit(texts + 0.2 * np.random.default_rng(1).normal(size=texts.shape))
        studies = np.arange(150) // 3
        scores = images.astype(np.float64) @ texts.astype(np.float64).T
        found = find_first_correct(images, texts, Correct(ids, studies))
        expected = [
            average_precision_score(right, own) for right, own in zip(correct_matrix(ids, studies), scores, strict=True)
        ]
        np.testing.assert_allclose(found.average_precision(), expected)

    def test_without_ties_counts_the_best_ranked_of_equal_texts(self):
        images, texts, ids = random_pairs(200, 200, noise=2)
        scores = images.astype(np.float64) @ texts.astype(np.float64).T
        order = np.argsort(-scores, axis=1)
        first = np.array([int(np.flatnonzero(ids[row] == own)[0]) + 1 for row, own in zip(order, ids, strict=True)])
        metrics = retrieval_metrics(find_first_correct(images, texts, Correct(ids)))
        # equal wrong texts tie among themselves, never with the correct one: the positions are certain
        expected = {f"recall_at_{k}": (first <= k).mean() for k in (1, 5, 10)}
        expected |= {"median_rank": np.median(first), "mrr": (1 / first).mean()}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)

    def test_a_single_correct_candidate_gets_the_mid_rank(self):
        scores = [[1, 2, 2, 2, 2], *[[0] * 5] * 4]
        found = find_first_correct(*one_hot_scores(scores), Correct(np.arange(5)))
        assert found.expected_rank().tolist() == [5, 3, 3, 3, 3]

    def test_another_image_of_the_study_is_correct_and_strictly_is_not(self):
        scores = np.array([[1, 2, 0, 0], [2, 1, 0, 0], [0, 0, 2, 1], [0, 0, 2, 1]])
        pairs, ids, studies = one_hot_scores(scores), np.arange(4), np.array([7, 7, 8, 9])
        assert find_first_correct(*pairs, Correct(ids)).recall_at(1).tolist() == [0, 0, 1, 0]
        assert find_first_correct(*pairs, Correct(ids, studies)).recall_at(1).tolist() == [1, 1, 1, 0]
        assert find_first_correct(*pairs, Correct(ids, studies)).average_precision().tolist() == [1, 1, 1, 0.5]
        assert find_first_correct(*pairs, Correct(ids, studies, strict=True)).recall_at(1).tolist() == [0, 0, 1, 0]

    def test_strictly_equal_texts_share_the_place(self):
        embeds = unit(np.eye(2).repeat(4, axis=0))
        found = find_first_correct(embeds, embeds, Correct(np.arange(8) // 4, strict=True))
        np.testing.assert_allclose(found.recall_at(1), 1 / 4)
        np.testing.assert_allclose(found.average_precision(), np.mean(1 / np.arange(1, 5)))

    @pytest.mark.parametrize("strict", [False, True])
    def test_constant_embeddings_are_at_chance(self, strict):
        count, width = 60, 8
        ids = np.arange(count) // 3
        same = 1 if strict else 3
        constant = unit(np.random.default_rng(0).normal(size=(1, width))).repeat(count, axis=0)
        metrics = retrieval_metrics(find_first_correct(constant, constant, Correct(ids, strict=strict)))
        assert metrics["recall_at_1"] == pytest.approx(same / count)
        missed = [(count - same - i) / (count - i) for i in range(10)]
        assert metrics["recall_at_10"] == pytest.approx(1 - np.prod(missed))
        assert metrics["median_rank"] == pytest.approx((count + 1) / (same + 1))
        places = np.arange(1, count + 1)
        by_place = (1 + (places - 1) * (same - 1) / (count - 1)) / places
        assert metrics["map"] == pytest.approx(by_place.mean())

    def test_rounding_noise_is_no_ranking(self):
        noise = 1e-8 * np.random.default_rng(0).normal(size=(50, 8))
        images, texts = np.full((50, 8), 8**-0.5) + noise, np.full((50, 8), 8**-0.5)
        metrics = retrieval_metrics(find_first_correct(images, texts, Correct(np.arange(50))))
        assert metrics["recall_at_1"] == pytest.approx(1 / 50)

    @pytest.mark.parametrize("strict", [False, True])
    def test_sizes_of_chunks_change_nothing(self, monkeypatch, strict):
        images, texts, ids = random_pairs(50, 20)
        correct = Correct(ids, np.arange(50) // 2, strict)
        whole = [find_first_correct(images, texts, correct), find_first_correct(texts, images, correct)]
        monkeypatch.setattr("knee_siglip.metrics.matching.retrieval.QUERIES_AT_ONCE", 7)
        chunked = [find_first_correct(images, texts, correct), find_first_correct(texts, images, correct)]
        for one, other in zip(whole, chunked, strict=True):
            np.testing.assert_equal(asdict(one), asdict(other))

    def test_order_of_the_rows_changes_nothing(self):
        images, texts, ids = random_pairs(60, 20)
        studies, order = np.arange(60) // 2, np.random.default_rng(1).permutation(60)
        one = find_first_correct(images, texts, Correct(ids, studies))
        other = find_first_correct(images[order], texts[order], Correct(ids[order], studies[order]))
        for name, values in asdict(one).items():
            np.testing.assert_array_equal(values[order], asdict(other)[name])

    def test_no_rows_have_no_figures(self):
        nothing = np.zeros((0, 4))
        assert retrieval_metrics(find_first_correct(nothing, nothing, Correct(np.zeros(0, dtype=int)))) == {}


class TestContrastiveAccuracy:
    def test_equals_a_plain_loop_with_random_tie_breaking(self):
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 4, 10)
        scores = rng.integers(0, 3, (10, 10)).astype(float)
        correct = ids[:, None] == ids[None, :]
        hits = []
        for _ in range(4000):
            jittered = scores + rng.uniform(0, 0.5, scores.shape)
            to_text = correct[np.arange(10), jittered.argmax(axis=1)]
            to_image = correct[jittered.argmax(axis=0), np.arange(10)]
            hits.append((to_text.mean() + to_image.mean()) / 2)
        credit = contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], Correct(ids), batch_size=64)
        assert credit.accuracy == pytest.approx(np.mean(hits), abs=0.01)

    def test_identical_texts_are_correct_and_the_strict_one_shares_them(self):
        images = texts = unit(np.eye(2).repeat(4, axis=0))
        assert contrastive_accuracy(images, texts, Correct(np.arange(8) // 4)) == 1
        assert contrastive_accuracy(images, texts, Correct(np.arange(8) // 4, strict=True)) == pytest.approx(1 / 4)

    def test_perfect_distinct_pairs_score_one_in_both(self):
        embeds = unit(np.eye(70))
        assert contrastive_accuracy(embeds, embeds, Correct(np.arange(70))) == 1
        assert contrastive_accuracy(embeds, embeds, Correct(np.arange(70), strict=True)) == 1

    def test_constant_embeddings_are_at_chance(self):
        constant = unit(np.ones((128, 8)))
        assert contrastive_accuracy(constant, constant, Correct(np.arange(128))) == pytest.approx(1 / 64)
        assert contrastive_accuracy(constant, constant, Correct(np.zeros(128), strict=True)) == pytest.approx(1 / 64)
        assert contrastive_accuracy(constant, constant, Correct(np.zeros(128))) == 1

    def test_shuffled_texts_are_at_chance(self):
        images, texts, _ = random_pairs(6400, 6400)
        shuffled = np.random.default_rng(1).permutation(6400)
        assert contrastive_accuracy(images, texts[shuffled], Correct(shuffled)) == pytest.approx(1 / 64, abs=0.005)

    def test_texts_may_have_any_numbers(self):
        images, texts, ids = random_pairs(100, 10)
        numbers = number_texts([f"text {number}" for number in ids])
        by_text = contrastive_accuracy(images, texts, Correct(numbers))
        assert by_text == contrastive_accuracy(images, texts, Correct(7 * ids + 3))
        assert 0.5 < by_text < 1

    def test_another_text_of_the_study_is_correct(self):
        """The texts of the two images of each study are exchanged."""
        images = unit(np.eye(8))
        texts, ids, studies = images[np.arange(8) ^ 1], np.arange(8), np.arange(8) // 2
        assert contrastive_accuracy(images, texts, Correct(ids)) == 0
        assert contrastive_accuracy(images, texts, Correct(ids, studies)) == 1
        assert contrastive_accuracy(images, texts, Correct(ids, studies, strict=True)) == 0

    def test_batches_are_full_seeded_and_disjoint(self):
        batches = shuffled_batches(200, 64, seed=3)
        assert [len(rows) for rows in batches] == [64, 64, 64]
        assert len(np.unique(np.concatenate(batches))) == 192
        np.testing.assert_array_equal(batches, shuffled_batches(200, 64, seed=3))
        assert not np.array_equal(batches, shuffled_batches(200, 64, seed=4))

    def test_fewer_rows_than_a_batch_are_one_batch_that_says_so(self):
        credit = contrastive_credit(lambda rows: np.eye(len(rows)), Correct(np.arange(10)), batch_size=64)
        assert (credit.batch_size, len(credit.rows), credit.accuracy) == (10, 10, 1)

    def test_without_rows_it_is_undefined(self):
        assert np.isnan(contrastive_accuracy(np.zeros((0, 4)), np.zeros((0, 4)), Correct(np.zeros(0))))


class TestPerfectReader:
    def test_unambiguous_texts_reach_one(self):
        texts = [f"text {row}" for row in range(20)]
        scores = perfect_reader_scores([{text: 1.0} for text in texts], texts)
        assert contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], Correct(np.arange(20))).accuracy == 1

    def test_synonyms_cost_what_they_should(self):
        """Two equally likely words for each of two findings: the reader guesses the word of an image half the time."""
        words = {"a": {"a1": 0.5, "a2": 0.5}, "b": {"b1": 0.5, "b2": 0.5}}
        texts = ["a1", "a2", "b1", "b2"]
        scores = perfect_reader_scores([words[text[0]] for text in texts], texts)
        credit = contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], Correct(np.arange(4)))
        assert credit.accuracy == pytest.approx(0.5)

    def test_the_likelier_word_is_chosen(self):
        known = {"mild OA": 0.9, "mild osteoarthritis": 0.1}
        scores = perfect_reader_scores([known, known], ["mild OA", "mild osteoarthritis"])
        np.testing.assert_allclose(scores, [[0.9, 0.1], [0.9, 0.1]])
        credit = contrastive_credit(lambda rows: scores[np.ix_(rows, rows)], Correct(np.array([0, 1])))
        assert sorted(credit.image_to_text.tolist()) == [0, 1]
