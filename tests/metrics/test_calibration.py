"""Calibration error and Brier score by their definitions, and the temperature that undoes a known one."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from knee_siglip.metrics.calibration import (
    TEMPERATURES,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)


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


def drawn(count=4000, seed=0):
    """Logits (N, 5) and labels that are drawn by just these probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, 5))
    labels = (rng.uniform(size=(count, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return logits, labels


def test_bins_are_what_the_error_sums_over():
    logits, labels = drawn(403)
    bins = reliability_bins(softmax(3 * logits, axis=1), labels)
    assert [piece.rows for piece in bins] == [41] * 3 + [40] * 7
    assert sorted(piece.confidence for piece in bins) == [piece.confidence for piece in bins]
    mean = sum(piece.accuracy * piece.rows for piece in bins) / 403
    assert mean == pytest.approx((logits.argmax(axis=1) == labels).mean())
    error = sum(piece.rows * abs(piece.accuracy - piece.confidence) for piece in bins) / 403
    assert expected_calibration_error(softmax(3 * logits, axis=1), labels) == pytest.approx(error)


def test_brier_score_by_its_definition_and_as_scikit_learn_has_it():
    logits, labels = drawn(100)
    probabilities = softmax(logits, axis=1)
    by_hand = np.mean([((probabilities[row] - np.eye(5)[labels[row]]) ** 2).sum() for row in range(100)])
    assert brier_score(probabilities, labels) == pytest.approx(by_hand)
    two = two_class(np.array([0.9, 0.6, 0.2]))
    assert brier_score(two, np.array([0, 1, 1])) == pytest.approx(2 * brier_score_loss([1, 0, 0], two[:, 0]))


def test_brier_score_at_the_ends():
    labels = np.array([0, 3, 4])
    assert brier_score(np.eye(5)[labels], labels) == 0
    assert brier_score(np.eye(5)[(labels + 1) % 5], labels) == 2
    assert brier_score(np.full((3, 5), 0.2), labels) == pytest.approx(0.8)


@pytest.mark.parametrize("factor", [0.25, 1.0, 6.0])
def test_the_temperature_undoes_a_known_one(factor):
    logits, labels = drawn(20_000)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_the_temperature_has_the_least_log_loss():
    logits, labels = drawn(300)
    best = fit_temperature(logits, labels)
    losses = [log_loss(labels, softmax(logits / t, axis=1)) for t in (best, 0.98 * best, 1.02 * best)]
    assert min(losses) == losses[0]


def test_scaling_leaves_the_ranking_of_classes_and_lowers_the_errors():
    logits, labels = drawn()
    fitted = fit_temperature(5 * logits[:2000], labels[:2000])
    raw, scaled = softmax(5 * logits[2000:], axis=1), softmax(5 * logits[2000:] / fitted, axis=1)
    np.testing.assert_array_equal(raw.argmax(axis=1), scaled.argmax(axis=1))
    assert expected_calibration_error(scaled, labels[2000:]) < 0.3 * expected_calibration_error(raw, labels[2000:])
    assert brier_score(scaled, labels[2000:]) < brier_score(raw, labels[2000:])


def test_the_temperature_of_certainty_and_of_ignorance_is_bounded():
    labels = np.arange(5).repeat(20)
    low, high = TEMPERATURES
    assert low <= fit_temperature(np.eye(5)[labels], labels) < 5 * low  # the loss is 0 in double precision there
    assert 0.9 * high < fit_temperature(np.eye(5)[(labels + 1) % 5], labels) <= high


@pytest.mark.filterwarnings("error")
def test_undefined_figures():
    nothing = np.zeros((0, 5)), np.zeros(0, dtype=int)
    assert np.isnan(brier_score(*nothing))
    assert np.isnan(fit_temperature(*nothing))
    assert reliability_bins(*nothing) == []
    assert np.isnan(fit_temperature(np.ones((3, 5)), np.arange(3)))
