"""Intervals where mistakes are few, or none: against Wilson's and Newcombe's published figures, and by hand."""

import numpy as np
import pytest

from knee_siglip.metrics.bootstrap import (
    auroc_statistic,
    balanced_accuracy_statistic,
    interval_of,
    kappa_statistic,
    mean_statistic,
)
from knee_siglip.metrics.intervals import Interval, clustered_interval, widened_at_the_edge, wilson_interval

ROWS = np.arange(80)
PAIRS = ROWS // 2


def as_found(expected):
    """Either end to rounding."""
    return Interval(pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]
)
def test_wilson_as_published(right, count, low, high):
    """Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3."""
    found = wilson_interval(right / count, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_rows_that_are_independent_count_each():
    values = (np.arange(49) > 2).astype(float)
    assert clustered_interval(values, np.arange(49)) == as_found(wilson_interval(46 / 49, 49))


def test_knees_that_are_always_alike_count_once():
    values = np.repeat((np.arange(40) > 5).astype(float), 2)
    assert clustered_interval(values, PAIRS) == as_found(wilson_interval(34 / 40, 40))


def test_nothing_but_right_answers_has_the_width_of_its_patients():
    found = clustered_interval(np.ones(80), PAIRS)
    assert found == as_found(wilson_interval(1.0, 40))
    assert found.low == pytest.approx(40 / (40 + 1.96**2), abs=1e-3)
    assert clustered_interval(np.zeros(0), np.zeros(0, int)) is None


def test_one_mistake_more_never_raises_the_lower_end():
    lows = [clustered_interval((mistakes <= ROWS).astype(float), PAIRS).low for mistakes in range(10)]
    assert lows == sorted(lows, reverse=True)


def test_only_an_interval_that_reaches_the_edge_is_widened():
    inside = Interval(0.8, 0.99)
    assert widened_at_the_edge(inside, 0.95, 30) is inside
    high, low = widened_at_the_edge(Interval(0.98, 1.0), 0.99, 30), widened_at_the_edge(Interval(0.0, 0.02), 0.01, 30)
    assert (high.low, high.high) == (pytest.approx(wilson_interval(0.99, 30).low), 1.0)
    assert (low.low, low.high) == (0.0, pytest.approx(wilson_interval(0.01, 30).high))


def test_an_area_of_one_is_as_sure_as_its_rarer_class():
    truth = ROWS < 20
    found = interval_of(auroc_statistic(truth.astype(float), truth), ROWS, 50)
    assert found == as_found(wilson_interval(1.0, 4 * 20 * 60 / 80))
    fewer = interval_of(auroc_statistic(truth.astype(float), truth), PAIRS, 50)
    assert fewer.low < found.low < found.high == fewer.high == 1.0


def test_perfect_grades_leave_room_for_what_chance_has_hidden():
    grades = ROWS % 4
    hidden = wilson_interval(0.0, 80).high
    assert interval_of(kappa_statistic(grades, grades), ROWS, 50) == as_found(Interval(1 - hidden, 1.0))
    balanced = interval_of(balanced_accuracy_statistic(grades, grades), ROWS, 50)
    assert balanced == as_found(wilson_interval(1.0, 80))
    rarest = np.where(ROWS < 12, 0, 1)
    assert interval_of(balanced_accuracy_statistic(rarest, rarest), ROWS, 50) == as_found(wilson_interval(1.0, 24))


def test_one_grade_for_all_agrees_by_chance_with_an_interval():
    found = interval_of(kappa_statistic(ROWS % 4, np.zeros(80, int)), ROWS, 50)
    assert found.low == -found.high
    assert 0.01 < found.high < 0.2


def test_texts_that_repeat_make_a_recall_less_sure():
    texts = ROWS // 8
    values = (texts % 3 > 0).astype(float)
    by_patient = interval_of(mean_statistic(values), PAIRS, 50)
    by_text = interval_of(mean_statistic(values, queries=texts), PAIRS, 50)
    assert by_text.high - by_text.low > 1.7 * (by_patient.high - by_patient.low)
    assert interval_of(mean_statistic(values, queries=ROWS // 10), PAIRS, 50) is None  # eight texts
