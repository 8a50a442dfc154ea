"""Thresholds chosen on val, and what they are worth on test."""

import dataclasses

import numpy as np
import pytest

from knee_siglip.evaluation.clinical.operating_points import measure_operating_points
from knee_siglip.evaluation.confidence import abstention_table
from knee_siglip.metrics.grading import youden_threshold

OA = "zero_shot_kl.oa"


def score_of(split):
    return split.grade_probabilities[:, 2:].sum(axis=1)


def test_the_threshold_is_that_of_val_and_the_figures_those_of_test(make_split, data_of):
    test, val = make_split(seed=1, noise=0.8), make_split(seed=2, noise=0.8, name="val")
    metrics = measure_operating_points(test, data_of(test, val))
    threshold = youden_threshold(score_of(val), val.grades >= 2)
    yes, truth = score_of(test) >= threshold, test.grades >= 2
    expected = {
        "threshold": threshold,
        "positives": truth.sum(),
        "accuracy": (yes == truth).mean(),
        "sensitivity": yes[truth].mean(),
        "specificity": (~yes)[~truth].mean(),
        "ppv": truth[yes].mean(),
    }
    assert {name: metrics[f"{OA}.{name}"] for name in expected} == pytest.approx(expected)
    for name in ("accuracy", "sensitivity", "specificity", "ppv"):
        assert metrics[f"{OA}.{name}_ci_low"] < expected[name] < metrics[f"{OA}.{name}_ci_high"]
    harder = dataclasses.replace(test, image_embeds=test.image_embeds[::-1])
    assert measure_operating_points(harder, data_of(harder, val))[f"{OA}.threshold"] == threshold


def test_a_model_that_says_the_same_of_all_has_no_operating_point(make_split, data_of):
    def collapsed(**kind):
        split = make_split(**kind)
        return dataclasses.replace(split, image_embeds=np.repeat(split.image_embeds[:1], len(split), axis=0))

    test, val = collapsed(seed=1), collapsed(seed=2, name="val")
    assert not any("sensitivity" in name for name in measure_operating_points(test, data_of(test, val)))


def test_val_chooses_and_is_not_judged(make_split, data_of):
    test, val = make_split(seed=1), make_split(seed=2, name="val")
    for split, data in ((val, data_of(test, val)), (test, data_of(test))):
        assert not any(name.startswith(OA) for name in measure_operating_points(split, data))
    assert abstention_table(val, data_of(test, val)) == abstention_table(test, data_of(test)) == []


def test_each_grade_is_judged_by_the_likeliest(make_split, data_of):
    split = make_split(noise=0.8)
    metrics = measure_operating_points(split, data_of(split))
    for grade in range(5):
        yes, truth = split.predicted == grade, split.grades == grade
        expected = {"recall": yes[truth].mean(), "specificity": (~yes)[~truth].mean(), "ppv": truth[yes].mean()}
        for name, value in expected.items():
            key = f"zero_shot_kl.grade_{grade}.{name}"
            assert metrics[key] == pytest.approx(value)
            assert metrics[f"{key}_ci_low"] < value < metrics[f"{key}_ci_high"]


def test_few_patients_have_figures_without_an_interval(make_split, data_of):
    test, val = make_split(seed=1, count=12), make_split(seed=2, name="val")
    metrics = measure_operating_points(test, data_of(test, val))
    assert f"{OA}.sensitivity" in metrics
    assert f"{OA}.sensitivity_ci_low" not in metrics
    assert metrics[f"{OA}.sensitivity_ci_units"] < 10


def test_val_chooses_how_sure_an_answer_must_be(make_split, data_of):
    test, val = make_split(seed=1, noise=0.8), make_split(seed=2, noise=0.8, name="val")
    on_val, confidence = (split.grade_probabilities.max(axis=1) for split in (val, test))
    table = abstention_table(test, data_of(test, val))
    assert [row["answered_on_val"] for row in table] == [1.0, 0.9, 0.8, 0.7, 0.5]
    for row in table[1:]:
        answered = confidence >= row["threshold"]
        assert (on_val >= row["threshold"]).mean() == pytest.approx(row["answered_on_val"])
        assert (row["coverage"], row["n"]) == (answered.mean(), answered.sum())
        assert row["risk"] == pytest.approx((test.predicted != test.grades)[answered].mean())
        assert row["low"] <= row["risk"] <= row["high"]
    assert table[0]["n"] == 160
