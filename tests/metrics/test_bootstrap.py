"""The vectorised bootstrap against a plain loop over resampled patients."""

import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from knee_siglip.metrics.bootstrap import (
    Interval,
    kappa_interval,
    macro_auroc_interval,
    mean_interval,
    number_patients,
    percentile_interval,
)
from knee_siglip.metrics.zero_shot import zero_shot_metrics

RESAMPLES = 60


def plain_loop(statistic, patients, seed=0):
    """Draw patients, collect all of their rows, compute the figure, take the percentiles."""
    count = patients.max() + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    values = []
    for drawn in draws:
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in np.repeat(np.arange(count), drawn)])
        values.append(statistic(rows))
    return Interval(*np.quantile(values, [0.025, 0.975]))


@pytest.fixture
def graded():
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, 90)
    scores = np.eye(5)[grades] + rng.normal(size=(90, 5)).round(1)
    return scores, grades, np.arange(90) // 2


def assert_equal(interval, expected):
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_mean_equals_a_plain_loop(graded):
    _, _, patients = graded
    values = np.random.default_rng(1).uniform(size=90)
    assert_equal(mean_interval(values, patients, RESAMPLES), plain_loop(lambda rows: values[rows].mean(), patients))


def test_kappa_equals_a_plain_loop(graded):
    scores, grades, patients = graded
    predicted = scores.argmax(axis=1)
    expected = plain_loop(lambda rows: cohen_kappa_score(grades[rows], predicted[rows], weights="quadratic"), patients)
    assert_equal(kappa_interval(grades, predicted, patients, RESAMPLES), expected)


def test_macro_auroc_equals_a_plain_loop(graded):
    scores, grades, patients = graded

    def area(rows):
        return np.mean([roc_auc_score(grades[rows] == g, scores[rows][:, g]) for g in np.unique(grades[rows])])

    assert_equal(macro_auroc_interval(scores, grades, patients, RESAMPLES), plain_loop(area, patients))


def test_resamples_in_pieces_change_nothing(graded, monkeypatch):
    scores, grades, patients = graded
    whole = macro_auroc_interval(scores, grades, patients, RESAMPLES)
    monkeypatch.setattr("knee_siglip.metrics.bootstrap.CELLS_AT_ONCE", 700)
    assert macro_auroc_interval(scores, grades, patients, RESAMPLES) == whole


def test_the_interval_has_the_width_of_theory_and_holds_the_estimate():
    values = (np.random.default_rng(0).uniform(size=400) < 0.7).astype(float)
    interval = mean_interval(values, np.arange(400))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval.low < values.mean() < interval.high


def test_rows_of_one_patient_that_agree_widen_the_interval():
    values = np.repeat((np.arange(100) % 2).astype(float), 4)
    by_row, by_patient = mean_interval(values, np.arange(400)), mean_interval(values, np.repeat(np.arange(100), 4))
    assert by_patient.high - by_patient.low > 1.7 * (by_row.high - by_row.low)


def test_patients_may_be_any_subset_of_numbers():
    values = np.array([0.0, 1.0, 1.0])
    assert mean_interval(values, np.array([7, 7, 90])) == mean_interval(values, np.array([0, 0, 1]))


def test_rows_without_a_patient_stand_for_themselves():
    assert number_patients(["a", "", "b", "a", ""], 5).tolist() == [0, 1, 2, 0, 3]
    assert number_patients(None, 3).tolist() == [0, 1, 2]
    assert len(set(number_patients(["1", ""], 2))) == 2  # an id that looks like a row number is none


@pytest.mark.filterwarnings("error")
def test_undefined_figures_have_no_interval():
    nothing = np.zeros(0, dtype=int)
    assert mean_interval(np.zeros(0), nothing) is None
    assert kappa_interval(nothing, nothing, nothing) is None
    assert macro_auroc_interval(np.eye(5)[[2, 2]], np.array([2, 2]), np.arange(2)) is None
    assert percentile_interval(lambda draws: np.full(len(draws), np.nan), 3) is None


def test_a_test_split_takes_seconds():
    rng = np.random.default_rng(0)
    grades, scores, patients = rng.integers(0, 5, 320), rng.normal(size=(320, 5)), np.arange(320) // 2
    started = time.perf_counter()
    interval = macro_auroc_interval(scores, grades, patients)
    kappa_interval(grades, scores.argmax(axis=1), patients)
    assert time.perf_counter() - started < 5
    assert interval.low < zero_shot_metrics(scores, grades)["macro_auroc"] < interval.high
