"""Grading figures against scikit-learn, at chance, and where they are undefined."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from knee_siglip.metrics.zero_shot import grade_confusion, kappa_from_confusion, weighted_macro_auroc, zero_shot_metrics


def graded_scores(count=200, seed=0, skill=1.0):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    return skill * np.eye(5)[grades] + rng.normal(size=(count, 5)).round(1), grades


def test_figures_equal_scikit_learn():
    scores, grades = graded_scores()
    predicted = scores.argmax(axis=1)
    metrics = zero_shot_metrics(scores, grades)
    assert metrics["accuracy"] == pytest.approx((predicted == grades).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(grades, predicted))
    assert metrics["adjacent_accuracy"] == pytest.approx((abs(predicted - grades) < 2).mean())
    assert metrics["quadratic_weighted_kappa"] == pytest.approx(
        cohen_kappa_score(grades, predicted, weights="quadratic")
    )
    by_grade = [roc_auc_score(grades == grade, scores[:, grade]) for grade in range(5)]
    assert metrics["macro_auroc"] == pytest.approx(np.mean(by_grade))


def test_constant_scores_are_at_chance():
    _, grades = graded_scores()
    metrics = zero_shot_metrics(np.full((200, 5), 0.3), grades)
    assert metrics["balanced_accuracy"] == pytest.approx(1 / 5)
    assert metrics["quadratic_weighted_kappa"] == pytest.approx(0)
    assert metrics["macro_auroc"] == pytest.approx(1 / 2)


def test_shuffled_grades_are_at_chance():
    scores, grades = graded_scores(5000, skill=5)
    metrics = zero_shot_metrics(scores, np.random.default_rng(1).permutation(grades))
    assert metrics["accuracy"] == pytest.approx(0.2, abs=0.03)
    assert metrics["quadratic_weighted_kappa"] == pytest.approx(0, abs=0.05)
    assert metrics["macro_auroc"] == pytest.approx(0.5, abs=0.02)


def test_perfect_scores_are_perfect():
    assert set(zero_shot_metrics(np.eye(5), np.arange(5)).values()) == {1.0}


def test_only_grades_that_occur_count():
    scores = np.eye(5)[[0, 0, 3, 4]]
    metrics = zero_shot_metrics(scores, np.array([0, 0, 3, 3]))
    assert metrics["balanced_accuracy"] == pytest.approx(0.75)  # grade 4 is predicted but never true
    assert metrics["macro_auroc"] == pytest.approx((1 + 0.75) / 2)


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_left_out():
    assert zero_shot_metrics(np.zeros((0, 5)), np.zeros(0, dtype=int)) == {}
    agreeing = zero_shot_metrics(np.eye(5)[[2, 2]], np.array([2, 2]))
    assert agreeing == {"accuracy": 1.0, "balanced_accuracy": 1.0, "adjacent_accuracy": 1.0}
    assert zero_shot_metrics(np.eye(5)[[2, 3]], np.array([2, 2]))["quadratic_weighted_kappa"] == 0


def test_kappa_of_many_confusions_at_once_equals_scikit_learn():
    pairs = [graded_scores(50, seed) for seed in range(3)]
    confusions = np.stack([grade_confusion(grades, scores.argmax(axis=1)) for scores, grades in pairs])
    expected = [cohen_kappa_score(grades, scores.argmax(axis=1), weights="quadratic") for scores, grades in pairs]
    np.testing.assert_allclose(kappa_from_confusion(confusions), expected)
    assert np.isnan(kappa_from_confusion(np.diag([0, 7, 0, 0, 0])))


def test_weighted_auroc_equals_repeated_rows():
    scores, grades = graded_scores(40)
    weights = np.random.default_rng(2).integers(0, 3, (6, 40))
    for weight, area in zip(weights, weighted_macro_auroc(scores, grades, weights), strict=True):
        rows = np.repeat(np.arange(40), weight)
        present = np.unique(grades[rows])
        by_grade = [roc_auc_score(grades[rows] == grade, scores[rows][:, grade]) for grade in present]
        assert area == pytest.approx(np.mean(by_grade))


@pytest.mark.filterwarnings("error")
def test_weighted_auroc_of_a_single_grade_is_undefined():
    areas = weighted_macro_auroc(np.eye(5)[[0, 1]], np.array([0, 1]), np.array([[1, 1], [2, 0]]))
    assert areas[0] == 1
    assert np.isnan(areas[1])
