"""Calibration with a temperature from val alone, and abstaining, on whole splits."""

import dataclasses

import numpy as np
import pytest

from knee_siglip.evaluation.confidence import (
    calibration_table,
    measure_calibration,
    measure_selective,
    risk_coverage_table,
    temperature_for,
)
from knee_siglip.metrics.calibration import fit_temperature


def test_the_temperature_comes_from_val_alone(make_split, data_of):
    test, val = make_split(seed=1), make_split(seed=2, name="val")
    expected = fit_temperature(val.logit_scale * val.grade_scores, val.grades)
    assert measure_calibration(test, data_of(test, val))["calibration.temperature"] == pytest.approx(expected)
    other = make_split(seed=1)
    other.rows["kl_grade"] = np.random.default_rng(0).permutation(other.rows["kl_grade"])
    assert temperature_for(other, data_of(other, val)) == pytest.approx(expected)


def test_an_overconfident_model_is_mended(make_split, data_of):
    changes = {"noise": 1.0, "logit_scale": 100.0, "count": 600}
    test, val = make_split(seed=1, **changes), make_split(seed=2, name="val", **changes)
    metrics = measure_calibration(test, data_of(test, val))
    assert metrics["calibration.temperature"] > 5
    assert metrics["calibration.ece_scaled"] < metrics["calibration.ece"] / 2
    assert metrics["calibration.brier_scaled"] < metrics["calibration.brier"]


@pytest.mark.filterwarnings("error")
def test_without_a_graded_val_nothing_is_scaled(make_split, data_of):
    test, blind = make_split(), make_split(name="val", graded=False)
    for data in (data_of(test), data_of(test, blind)):
        assert measure_calibration(test, data).keys() == {"calibration.ece", "calibration.brier"}
        assert {row["probabilities"] for row in calibration_table(test, data)} == {"raw"}


def test_val_itself_is_not_scaled(make_split, data_of):
    val = make_split(name="val")
    assert "calibration.temperature" not in measure_calibration(val, data_of(val))


def test_the_reliability_table_holds_each_graded_row_once(make_split, data_of):
    test = make_split(noise=1.0)
    table = calibration_table(test, data_of(test, make_split(name="val")))
    for kind in ("raw", "scaled"):
        rows = [row for row in table if row["probabilities"] == kind]
        assert [row["bin"] for row in rows] == list(range(10))
        accuracy = sum(row["accuracy"] * row["n"] for row in rows) / 160
        assert accuracy == pytest.approx((test.predicted == test.grades).mean())


def test_a_threshold_of_the_table_gives_its_risk(make_split):
    split = make_split(count=500, noise=1.0)
    confidence, wrong = split.grade_probabilities.max(axis=1), split.predicted != split.grades
    table = risk_coverage_table(split)
    assert [row["n"] for row in table] == [5 * percent for percent in range(1, 101)]
    for row in table:
        answered = confidence >= row["threshold"]
        assert (answered.mean(), wrong[answered].mean()) == pytest.approx((row["coverage"], row["risk"]))


def test_abstaining_helps_where_confidence_knows_something(make_split, data_of):
    split = make_split(count=500, noise=0.5)
    metrics = measure_selective(split, data_of(split))
    accuracy = (split.predicted == split.grades).mean()
    assert metrics["selective.accuracy_at_80_percent"] > accuracy + 0.03
    assert metrics["selective.aurc"] < 1 - accuracy


def test_with_shuffled_images_abstaining_is_worth_nothing(make_split, data_of):
    split = make_split(count=3000, noise=1.0)
    shuffled = np.random.default_rng(0).permutation(3000)
    split = dataclasses.replace(split, image_embeds=split.image_embeds[shuffled])
    metrics = measure_selective(split, data_of(split))
    assert metrics["selective.accuracy_at_80_percent"] == pytest.approx(0.2, abs=0.03)
    assert metrics["selective.aurc"] == pytest.approx(0.8, abs=0.03)


@pytest.mark.filterwarnings("error")
def test_few_rows_and_none(make_split, data_of):
    few, none = make_split(count=3), make_split(graded=False)
    assert [row["n"] for row in risk_coverage_table(few)] == [1, 2, 3]
    assert risk_coverage_table(none) == calibration_table(none, data_of(none)) == []
    assert np.isnan(list(measure_selective(none, data_of(none)).values())).all()
