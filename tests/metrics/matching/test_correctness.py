"""What is correct, by definition and by group."""

import numpy as np
import pytest

from knee_siglip.metrics.matching.correctness import Correct, CorrectCandidates


def rows_by_definition(correct, row):
    if correct.strict:
        return [row]
    same = correct.text_ids == correct.text_ids[row]
    if correct.study_ids is not None:
        same |= correct.study_ids == correct.study_ids[row]
    return np.flatnonzero(same).tolist()


@pytest.fixture(params=["texts", "studies", "strict"])
def correct(request):
    """Thirty rows with numbers that neither begin at 0 nor are without gaps."""
    rng = np.random.default_rng(0)
    texts, studies = 5 * rng.integers(1, 8, 30), rng.integers(100, 112, 30)
    return {
        "texts": Correct(texts),
        "studies": Correct(texts, studies),
        "strict": Correct(texts, studies, strict=True),
    }[request.param]


class TestCorrectCandidates:
    def test_are_those_of_the_definition(self, correct):
        judge = CorrectCandidates(correct, np.arange(30))
        for row in range(30):
            numbers, copies = judge.of(row)
            assert sorted(numbers.tolist()) == rows_by_definition(correct, row)
            assert copies.tolist() == [1] * len(numbers)

    def test_copies_add_up_to_the_rows(self, correct):
        number_of = np.arange(30) // 4
        judge = CorrectCandidates(correct, number_of)
        for row in range(30):
            numbers, copies = judge.of(row)
            expected = np.bincount(number_of[rows_by_definition(correct, row)], minlength=8)
            assert np.bincount(numbers, weights=copies, minlength=8).tolist() == expected.tolist()

    def test_are_those_among_chosen_rows(self, correct):
        rows = np.array([7, 0, 21, 3, 15, 8])
        expected = [[other in rows_by_definition(correct, row) for other in rows] for row in rows]
        assert correct.among(rows).tolist() == expected

    def test_of_any_row(self, correct):
        judge = CorrectCandidates(correct, np.arange(30))
        expected = {found for row in (3, 4, 17) for found in rows_by_definition(correct, row)}
        assert judge.of_any(np.array([3, 4, 17])).tolist() == sorted(expected)

    def test_rows_alike_have_the_same_ones(self, correct):
        for one in range(30):
            for other in np.flatnonzero(correct.alike == correct.alike[one]):
                assert rows_by_definition(correct, one) == rows_by_definition(correct, other)


def test_a_study_of_one_text_adds_nothing_to_tell_apart():
    correct = Correct(np.array([1, 1, 1, 2, 3]), np.array([1, 1, 2, 3, 3]))
    assert len(np.unique(correct.alike)) == 3
    assert len(np.unique(correct.alike[:3])) == 1
