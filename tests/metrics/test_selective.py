"""Risk and coverage against a plain loop, at both ends, and under ties."""

import numpy as np
import pytest

from knee_siglip.metrics.selective import risk_coverage


def test_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    confidence, correct = rng.permutation(50) / 50, rng.uniform(size=50) < 0.7
    curve = risk_coverage(confidence, correct)
    for kept in range(1, 51):
        chosen = sorted(range(50), key=lambda row: -confidence[row])[:kept]
        assert curve.risk[kept - 1] == pytest.approx(sum(not correct[row] for row in chosen) / kept)
        assert curve.coverage[kept - 1] == kept / 50
        assert set(chosen) == set(np.flatnonzero(confidence >= curve.confidence[kept - 1]))
    assert curve.aurc == pytest.approx(curve.risk.mean())


def test_a_confidence_that_knows_its_mistakes_beats_one_that_does_not():
    correct = np.arange(5000) < 4000
    knowing = risk_coverage(correct.astype(float), correct)
    ignorant = risk_coverage(np.random.default_rng(0).uniform(size=5000), correct)
    inverted = risk_coverage(-correct.astype(float), correct)
    assert knowing.accuracy_at(0.8) == 1
    assert knowing.aurc < ignorant.aurc < inverted.aurc
    assert ignorant.accuracy_at(1) == pytest.approx(0.8)
    assert ignorant.aurc == pytest.approx(0.2, abs=0.02)


def test_equal_confidences_share_their_mistakes_in_any_order():
    correct = np.repeat([True, False], [6, 4])
    for order in (np.arange(10), np.arange(10)[::-1]):
        np.testing.assert_allclose(risk_coverage(np.full(10, 0.5), correct[order]).risk, 0.4)


def test_coverage_is_at_least_what_was_asked_for():
    curve = risk_coverage(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    assert [curve.rows_at(coverage) for coverage in (0.01, 1 / 3, 0.5, 2 / 3, 0.8, 1)] == [1, 1, 2, 2, 3, 3]
    assert curve.accuracy_at(0.5) == 0.5


@pytest.mark.filterwarnings("error")
def test_without_rows_there_is_no_figure():
    curve = risk_coverage(np.zeros(0), np.zeros(0, dtype=bool))
    assert np.isnan(curve.aurc)
    assert np.isnan(curve.accuracy_at(0.8))
    assert len(curve.coverage) == 0
