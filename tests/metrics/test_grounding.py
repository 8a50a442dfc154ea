"""The MS-CXR figures against sums by hand."""

import math

import numpy as np
import pytest

from knee_siglip.metrics.grounding import (
    THRESHOLDS,
    box_mask,
    centre_prior,
    contrast_to_noise,
    evidence,
    finding_mean_statistic,
    grounding_metrics,
    mean_iou,
    pointing_game,
)

HEAT = np.array([[0.0, 0.2, 1.0], [0.0, 0.4, 0.6]])
INSIDE = np.array([[False, False, True], [False, False, True]])


def test_contrast_to_noise_by_hand():
    # inside 1.0, 0.6: mean 0.8, variance 0.04; outside 0, 0.2, 0, 0.4: mean 0.15, variance 0.0275
    expected = (0.8 - 0.15) / math.sqrt(0.04 + 0.0275)
    assert contrast_to_noise(HEAT, INSIDE) == pytest.approx(expected)
    assert contrast_to_noise(-HEAT, INSIDE) == pytest.approx(-expected)
    assert grounding_metrics(-HEAT, INSIDE)["cnr"] == pytest.approx(expected)
    assert grounding_metrics(-HEAT, INSIDE)["cnr_signed"] == pytest.approx(-expected)


def test_contrast_to_noise_does_not_change_with_scale_and_offset():
    assert contrast_to_noise(7 * HEAT + 3, INSIDE) == pytest.approx(contrast_to_noise(HEAT, INSIDE))


@pytest.mark.parametrize("heat", [np.full((2, 3), 0.1, np.float32), np.where(INSIDE, 1.0, 0.0)])
def test_what_does_not_vary_has_no_contrast_to_noise(heat):
    assert contrast_to_noise(heat, INSIDE) is None
    assert set(grounding_metrics(heat, INSIDE)) == {"pointing_game", "miou"}


def test_mean_iou_by_hand():
    # 0.1 and 0.2: four cells above, two of them inside: 2/4; 0.3 and 0.4: three, 2/3; 0.5: two, 2/2
    assert THRESHOLDS == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert mean_iou(HEAT, INSIDE) == pytest.approx((2 / 4 + 2 / 4 + 2 / 3 + 2 / 3 + 1) / 5)
    assert mean_iou(50 * HEAT, INSIDE) == pytest.approx(mean_iou(HEAT, INSIDE))


def test_a_map_without_evidence_covers_nothing():
    assert mean_iou(-HEAT - 1, INSIDE) == 0
    assert not evidence(-HEAT - 1).any()


def test_evidence_drops_what_speaks_against():
    np.testing.assert_allclose(evidence(np.array([[-3.0, 1.0, 2.0]])), [[0, 0.5, 1]])


def test_pointing_game():
    assert pointing_game(HEAT, INSIDE) == 1
    assert pointing_game(HEAT, ~INSIDE) == 0
    # of a flat map any place is the highest one: as good as chance
    assert pointing_game(np.zeros((2, 3)), INSIDE) == pytest.approx(2 / 6)


@pytest.mark.parametrize("inside", [np.zeros((2, 3), bool), np.ones((2, 3), bool)])
def test_nothing_is_measured_without_an_inside_and_an_outside(inside):
    assert grounding_metrics(HEAT, inside) == {}


def test_boxes_hold_the_cells_whose_centres_they_hold():
    mask = box_mask(np.array([[0.4, 0, 2.5, 1]]), (2, 3))
    np.testing.assert_array_equal(mask, [[True, True, False], [False, False, False]])
    # the right and lower edges belong to the neighbour, so that adjacent boxes share no cell
    assert box_mask(np.array([[0.5, 0.5, 1.5, 1.5]]), (2, 3)).sum() == 1


def test_boxes_of_one_finding_are_one_region():
    mask = box_mask(np.array([[0, 0, 2, 1], [1, 0, 3, 2]]), (2, 3))
    np.testing.assert_array_equal(mask, [[True, True, True], [False, True, True]])


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.array([[5.0, 5, 9, 9]]), np.array([[1.0, 1, 1, 1]])])
def test_boxes_outside_or_empty_hold_nothing(boxes):
    assert not box_mask(boxes, (2, 3)).any()


def test_boxes_are_cut_off_at_the_maps_edge():
    assert box_mask(np.array([[-5.0, -5, 99, 99]]), (2, 3)).all()


def test_the_centre_prior_is_highest_in_the_centre():
    prior = centre_prior(9)
    assert np.unravel_index(prior.argmax(), prior.shape) == (4, 4)
    np.testing.assert_allclose(prior, prior.T)
    np.testing.assert_allclose(prior, prior[::-1])
    assert prior[4, 0] == pytest.approx(math.exp(-((4 / 9) ** 2) / (2 * 0.25**2)))


def test_every_finding_counts_alike_and_one_that_a_resample_lacks_not_at_all():
    values = np.array([1.0, 0.0, 0.0, 0.0, np.nan])
    statistic = finding_mean_statistic(values, np.array(["a", "b", "b", "b", "b"]))
    weights = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 1.0]])
    np.testing.assert_allclose(statistic(weights), [0.5, 0, 1, np.nan])
    assert statistic.units(np.arange(5)) == 4
