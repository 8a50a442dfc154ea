"""Calibration slope against scikit-learn, net benefit by hand, agreement with a second reader."""

import dataclasses

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from knee_siglip.evaluation.clinical.reviewers import (
    decision_curve_table,
    grade_calibration_table,
    measure_calibration_slope,
    measure_readers,
)


def positive(split):
    return split.grade_probabilities[:, 2:].sum(axis=1), split.grades >= 2


def test_the_slope_is_that_of_a_logistic_regression(make_split, data_of):
    split = make_split(noise=1.0, logit_scale=15.0, count=400)
    metrics = measure_calibration_slope(split, data_of(split))
    score, truth = positive(split)
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(logit(np.clip(score, 1e-6, 1 - 1e-6))[:, None], truth)
    assert metrics["calibration.oa.slope"] == pytest.approx(fitted.coef_[0, 0], rel=1e-3)
    assert metrics["calibration.oa.intercept"] == pytest.approx(fitted.intercept_[0], abs=1e-3)
    for name, value in (("slope", fitted.coef_[0, 0]), ("intercept", fitted.intercept_[0])):
        assert metrics[f"calibration.oa.{name}_ci_low"] < value < metrics[f"calibration.oa.{name}_ci_high"]
    assert metrics["calibration.oa.slope"] < 1  # such a scale makes probabilities too extreme


@pytest.mark.filterwarnings("error")
def test_no_line_where_nothing_is_wrong_or_asked(make_split, data_of):
    perfect, blind = make_split(noise=0.0), make_split(graded=False)
    assert measure_calibration_slope(perfect, data_of(perfect)) == {}
    assert measure_calibration_slope(blind, data_of(blind)) == {}
    assert decision_curve_table(blind, data_of(blind)) == grade_calibration_table(blind, data_of(blind)) == []


def test_net_benefit_counts_false_positives_by_the_odds(make_split, data_of):
    split = make_split(noise=1.0)
    score, truth = positive(split)
    row = next(row for row in decision_curve_table(split, data_of(split)) if row["threshold"] == 0.2)
    acted = score >= 0.2
    assert row["model"] == pytest.approx((acted & truth).mean() - (acted & ~truth).mean() / 4)
    assert row["all"] == pytest.approx(truth.mean() - (~truth).mean() / 4)
    assert row["n"] == 160


def test_each_grade_has_its_mean_probability_beside_its_frequency(make_split, data_of):
    split = make_split()
    rows = grade_calibration_table(split, data_of(split))
    assert [row["share"] for row in rows] == [pytest.approx((split.grades == grade).mean()) for grade in range(5)]
    assert sum(row["probability"] for row in rows) == pytest.approx(1)


def test_a_second_reader_is_compared_where_both_graded(make_split, data_of):
    split = make_split()
    second = split.rows["kl_grade"].where(np.arange(160) % 10 > 0, 0).astype("Int64").mask(np.arange(160) < 40)
    rows = split.rows.assign(kl_grade_2=second)
    metrics = measure_readers(dataclasses.replace(split, rows=rows), data_of(split))
    known = np.arange(160) >= 40
    grades = second[known].to_numpy(dtype=int)
    name = "readers.between.quadratic_weighted_kappa"
    assert metrics["readers.n"] == 120
    assert metrics[name] == pytest.approx(cohen_kappa_score(split.grades[known], grades, weights="quadratic"))
    assert metrics[f"{name}_ci_low"] < metrics[name] < metrics[f"{name}_ci_high"]
    model = cohen_kappa_score(split.predicted[known], grades, weights="quadratic")
    assert metrics["readers.model_to_second.quadratic_weighted_kappa"] == pytest.approx(model)
    assert measure_readers(split, data_of(split)) == {}
