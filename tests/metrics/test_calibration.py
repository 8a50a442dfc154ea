"""Expected calibration error by its definition."""

import numpy as np
import pytest

from knee_siglip.metrics.calibration import expected_calibration_error, softmax


def two_class(confidence):
    return np.stack([confidence, 1 - confidence], axis=1)


def test_calibrated_probabilities_have_little_error_and_overconfident_ones_their_excess():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    labels = (rng.uniform(size=20_000) > confidence).astype(int)
    assert expected_calibration_error(two_class(confidence), labels) == pytest.approx(0, abs=0.02)
    certain = np.clip(confidence + 0.2, 0, 1)
    excess = (certain - confidence).mean()
    assert expected_calibration_error(two_class(certain), labels) == pytest.approx(excess, abs=0.02)


def test_two_bins_by_hand():
    probabilities = two_class(np.array([0.6, 0.7, 0.8, 0.9]))
    labels = np.array([0, 1, 0, 0])  # bins: confidence 0.65, half correct; confidence 0.85, all correct
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx((0.15 + 0.15) / 2)


def test_bins_hold_equal_numbers_of_rows_not_equal_ranges():
    confidence = np.concatenate([np.linspace(0.90, 0.91, 10), np.linspace(0.92, 0.93, 10)])
    labels = np.repeat([0, 1], 10)  # one equal-width bin would hold all of them: half correct at 0.915
    assert expected_calibration_error(two_class(confidence), labels, bins=2) == pytest.approx((0.095 + 0.925) / 2)


def test_the_order_of_rows_does_not_matter_where_confidences_are_equal():
    probabilities, labels = two_class(np.full(12, 0.75)), np.repeat([0, 1], [9, 3])
    for order in (np.arange(12), np.arange(12)[::-1]):
        assert expected_calibration_error(probabilities[order], labels[order]) == pytest.approx(0)


def test_few_rows_and_none():
    assert expected_calibration_error(two_class(np.array([0.7])), np.array([0])) == pytest.approx(0.3)
    assert np.isnan(expected_calibration_error(np.zeros((0, 5)), np.zeros(0, dtype=int)))


def test_softmax_of_large_logits_is_finite():
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4, 0.0]])), [[0.5, 0.5, 0]])
