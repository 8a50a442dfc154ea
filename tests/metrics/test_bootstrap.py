"""The vectorised bootstrap against a plain loop over resampled patients."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from knee_siglip.metrics.bootstrap import (
    auroc_statistic,
    balanced_accuracy_statistic,
    interval_of,
    kappa_statistic,
    macro_auroc_statistic,
    mean_statistic,
    patient_draws,
    resample,
    value_of,
)
from knee_siglip.metrics.intervals import Interval, percentile_interval

RESAMPLES = 60


def plain_values(statistic, patients, seed=0):
    """Draw as many patients as there are, one after the other; collect all rows of each; compute the figure."""
    rng = np.random.default_rng(seed)
    count = patients.max() + 1
    values = []
    for _ in range(RESAMPLES):
        drawn = [rng.integers(count) for _ in range(count)]
        values.append(statistic(np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])))
    return values


def plain_loop(statistic, patients):
    return Interval(*np.quantile(plain_values(statistic, patients), [0.025, 0.975]))


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
    drawn = resample([mean_statistic(values)], patients, RESAMPLES)[0]
    assert_equal(percentile_interval(drawn), plain_loop(lambda rows: values[rows].mean(), patients))


def test_kappa_equals_a_plain_loop(graded):
    scores, grades, patients = graded
    predicted = scores.argmax(axis=1)
    expected = plain_loop(lambda rows: cohen_kappa_score(grades[rows], predicted[rows], weights="quadratic"), patients)
    assert_equal(interval_of(kappa_statistic(grades, predicted), patients, RESAMPLES), expected)


def test_queries_of_one_text_are_drawn_together(graded):
    _, _, patients = graded
    texts, values = np.arange(90) % 11, np.random.default_rng(1).uniform(size=90)
    alone, by_text = mean_statistic(values), mean_statistic(values, queries=texts)
    drawn = resample([alone, by_text, alone], patients, RESAMPLES)
    expected = plain_values(lambda rows: values[rows].mean(), texts)
    np.testing.assert_allclose(drawn[1], expected)
    np.testing.assert_array_equal(drawn[0], resample([alone], patients, RESAMPLES)[0])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert (alone.units(patients), by_text.units(patients)) == (45, 11)
    # texts that differ more often than patients do say nothing new
    assert mean_statistic(values, queries=np.arange(90)).units(patients) == 45


def test_balanced_accuracy_equals_a_plain_loop_where_resamples_lack_a_grade(graded):
    scores, grades, patients = graded
    grades = np.where(np.arange(90) < 2, 4, grades % 4)  # one patient alone has grade 4
    predicted = scores.argmax(axis=1) % 4
    expected = plain_loop(lambda rows: balanced_accuracy_score(grades[rows], predicted[rows]), patients)
    assert_equal(interval_of(balanced_accuracy_statistic(grades, predicted), patients, RESAMPLES), expected)


def test_macro_auroc_equals_a_plain_loop(graded):
    scores, grades, patients = graded

    def area(rows):
        return np.mean([roc_auc_score(grades[rows] == g, scores[rows][:, g]) for g in np.unique(grades[rows])])

    assert_equal(interval_of(macro_auroc_statistic(scores, grades), patients, RESAMPLES), plain_loop(area, patients))


def test_binary_auroc_equals_a_plain_loop(graded):
    scores, grades, patients = graded
    truth = grades >= 2
    expected = plain_loop(lambda rows: roc_auc_score(truth[rows], scores[rows, 2]), patients)
    assert_equal(interval_of(auroc_statistic(scores[:, 2], truth), patients, RESAMPLES), expected)


def test_all_statistics_share_their_draws(graded):
    scores, grades, patients = graded
    predicted = scores.argmax(axis=1)
    statistics = [mean_statistic(scores[:, 0]), kappa_statistic(grades, predicted)]
    together = resample(statistics, patients, RESAMPLES)
    assert together.shape == (2, RESAMPLES)
    np.testing.assert_allclose(together[0], plain_values(lambda rows: scores[rows, 0].mean(), patients))
    for alone, values in zip(statistics, together, strict=True):
        np.testing.assert_array_equal(resample([alone], patients, RESAMPLES)[0], values)


def test_every_resample_draws_as_many_patients_as_there_are():
    draws = patient_draws(7, 5000)
    assert draws.shape == (5000, 7)
    assert (draws.sum(axis=1) == 7).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)
    assert draws.var(axis=0) == pytest.approx(np.full(7, 6 / 7), rel=0.1)  # of a binomial
    assert (draws != patient_draws(7, 5000, seed=1)).any()


def test_resamples_in_pieces_change_nothing(graded, monkeypatch):
    scores, grades, patients = graded
    whole = resample([macro_auroc_statistic(scores, grades)], patients, RESAMPLES)
    monkeypatch.setattr("knee_siglip.metrics.bootstrap.CELLS_AT_ONCE", 700)
    np.testing.assert_array_equal(resample([macro_auroc_statistic(scores, grades)], patients, RESAMPLES), whole)


def test_the_interval_has_the_width_of_theory_and_holds_the_estimate():
    values = (np.random.default_rng(0).uniform(size=400) < 0.7).astype(float)
    interval = interval_of(mean_statistic(values), np.arange(400))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval.low < values.mean() < interval.high


def test_rows_of_one_patient_that_agree_widen_the_interval():
    values = np.repeat((np.arange(100) % 2).astype(float), 4)
    by_row, by_patient = (
        interval_of(mean_statistic(values), np.arange(400)),
        interval_of(mean_statistic(values), np.repeat(np.arange(100), 4)),
    )
    assert by_patient.high - by_patient.low > 1.7 * (by_row.high - by_row.low)


def test_patients_may_be_any_subset_of_numbers():
    values = np.array([0.0, 1.0, 1.0])
    assert interval_of(mean_statistic(values), np.array([7, 7, 90])) == interval_of(
        mean_statistic(values), np.array([0, 0, 1])
    )


def test_rows_without_a_value_take_no_part(graded):
    scores, grades, _ = graded
    predicted, some = scores.argmax(axis=1), np.arange(90) % 3 > 0
    known, severe = np.where(some, grades, -1), np.where(some, grades > 1, -1)
    pairs = [
        (mean_statistic(np.where(some, scores[:, 0], np.nan)), mean_statistic(scores[some, 0])),
        (kappa_statistic(known, predicted), kappa_statistic(grades[some], predicted[some])),
        (
            balanced_accuracy_statistic(known, predicted),
            balanced_accuracy_statistic(grades[some], predicted[some]),
        ),
        (macro_auroc_statistic(scores, known), macro_auroc_statistic(scores[some], grades[some])),
        (
            auroc_statistic(scores[:, 0], severe),
            auroc_statistic(scores[some, 0], grades[some] > 1),
        ),
    ]
    for marked, without in pairs:
        assert value_of(marked, 90) == pytest.approx(value_of(without, int(some.sum())))


@pytest.mark.filterwarnings("error")
def test_undefined_figures_have_no_interval():
    nothing = np.zeros(0, dtype=int)
    assert interval_of(mean_statistic(np.zeros(0)), nothing) is None
    assert interval_of(kappa_statistic(nothing, nothing), nothing) is None
    assert interval_of(macro_auroc_statistic(np.eye(5)[[2, 2]], np.array([2, 2])), np.arange(2)) is None
    assert interval_of(auroc_statistic(np.array([0.1, 0.2]), np.array([True, True])), np.arange(2)) is None
    assert interval_of(balanced_accuracy_statistic(np.array([-1, -1]), np.array([0, 1])), np.arange(2)) is None
    assert percentile_interval(np.array([np.nan, np.nan])) is None
    assert np.isnan(value_of(mean_statistic(np.zeros(0)), 0))


@pytest.mark.filterwarnings("error")
def test_resamples_that_leave_a_figure_undefined_do_not_count(graded):
    """A single positive is missing from a third of the resamples."""
    truth = np.arange(20) == 3
    drawn = resample([auroc_statistic(np.arange(20.0), truth)], np.arange(20), 200)[0]
    assert np.isnan(drawn).any()
    interval = percentile_interval(drawn)
    assert 0 <= interval.low < interval.high <= 1


@pytest.mark.parametrize(("patients", "enough"), [(1, False), (9, False), (10, True)])
def test_an_interval_needs_ten_patients(patients, enough):
    rows = np.arange(40) % patients
    assert (interval_of(mean_statistic(np.arange(40) % 3), rows, 50) is not None) == enough


@pytest.mark.parametrize(("positive_patients", "enough"), [(1, False), (9, False), (10, True)])
def test_an_auroc_needs_ten_patients_of_each_class(positive_patients, enough):
    truth = np.arange(80) < 40
    patients = np.where(truth, np.arange(80) % positive_patients, np.arange(80))
    scores = np.random.default_rng(0).normal(size=80)
    for statistic in (auroc_statistic(scores, truth), auroc_statistic(scores, ~truth)):
        assert (interval_of(statistic, patients, 50) is not None) == enough
        assert statistic.units(patients) == positive_patients
