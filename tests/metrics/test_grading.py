"""Grading figures against scikit-learn, at chance, and where they are undefined."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    mean_absolute_error,
    recall_score,
    roc_auc_score,
)

from knee_siglip.metrics.grading import (
    grade_metrics,
    kappa_from_confusion,
    label_scores,
    weighted_macro_auroc,
    youden_threshold,
    zero_shot_metrics,
)


def graded_scores(count=200, seed=0, skill=1.0):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    return skill * np.eye(5)[grades] + rng.normal(size=(count, 5)).round(1), grades


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_a_label_has_the_mean_share_of_its_prompts_in_the_softmax_over_all_of_them():
    rng, scale = np.random.default_rng(0), 12.0
    images, prompts = unit(rng.normal(size=(5, 8))), [unit(rng.normal(size=(count, 8))) for count in (1, 4, 2)]
    shares = [np.exp(scale * images @ each.T).mean(axis=1) for each in prompts]
    logits = scale * label_scores(images, prompts, scale)
    expected = np.stack(shares, axis=1)
    np.testing.assert_allclose(
        np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
        expected / expected.sum(axis=1, keepdims=True),
        atol=1e-4,
    )


def test_scores_lie_between_the_mean_and_the_largest_cosine_and_prompts_that_are_repeated_change_nothing():
    rng = np.random.default_rng(1)
    images, prompts = unit(rng.normal(size=(6, 8))), unit(rng.normal(size=(3, 8)))
    cosines = images @ prompts.T
    for scale in (0.01, 10.0, 1e4):
        (scores,) = label_scores(images, [prompts], scale).T
        assert (cosines.mean(axis=1) - 1e-5 <= scores).all()
        assert (scores <= cosines.max(axis=1) + 1e-5).all()
        np.testing.assert_array_equal(label_scores(images, [np.repeat(prompts, 2, axis=0)], scale)[:, 0], scores)
    np.testing.assert_allclose(label_scores(images, [prompts[:1]], 10.0)[:, 0], cosines[:, 0], atol=1e-6)
    assert label_scores(images, [], 10.0).shape == (6, 0)


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
    precisions = average_precision_score(np.eye(5)[grades], scores, average="macro")
    assert metrics["macro_auprc"] == pytest.approx(precisions)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(grades, predicted))


def test_figures_of_each_grade_equal_scikit_learn():
    scores, grades = graded_scores()
    metrics = grade_metrics(scores, grades, "01234")
    recalls = recall_score(grades, scores.argmax(axis=1), average=None)
    for grade in range(5):
        truth, score = grades == grade, scores[:, grade]
        assert metrics[f"grade_{grade}.recall"] == pytest.approx(recalls[grade])
        assert metrics[f"grade_{grade}.auroc"] == pytest.approx(roc_auc_score(truth, score))
        assert metrics[f"grade_{grade}.auprc"] == pytest.approx(average_precision_score(truth, score))


def test_the_threshold_has_the_largest_sum_of_sensitivity_and_specificity():
    scores, grades = graded_scores()
    score, truth = scores[:, 2], grades >= 2
    sums = {limit: (score[truth] >= limit).mean() + (score[~truth] < limit).mean() for limit in score}
    found = youden_threshold(score, truth)
    assert (score[truth] >= found).mean() + (score[~truth] < found).mean() == pytest.approx(max(sums.values()))
    assert youden_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.arange(4) > 1) == pytest.approx(0.4)


def test_no_threshold_where_none_is_better_than_a_guess():
    truth = np.arange(10) % 2 > 0
    assert youden_threshold(np.full(10, 0.7), truth) is None
    assert youden_threshold(-truth.astype(float), truth) is None
    assert youden_threshold(np.arange(10.0), np.ones(10, bool)) is None


def test_constant_scores_are_at_chance():
    _, grades = graded_scores()
    metrics = zero_shot_metrics(np.full((200, 5), 0.3), grades)
    assert metrics["balanced_accuracy"] == pytest.approx(1 / 5)
    assert metrics["quadratic_weighted_kappa"] == pytest.approx(0)
    assert metrics["macro_auroc"] == pytest.approx(1 / 2)
    assert metrics["macro_auprc"] == pytest.approx(1 / 5)  # the mean prevalence


def test_shuffled_grades_are_at_chance():
    scores, grades = graded_scores(5000, skill=5)
    metrics = zero_shot_metrics(scores, np.random.default_rng(1).permutation(grades))
    assert metrics["accuracy"] == pytest.approx(0.2, abs=0.03)
    assert metrics["quadratic_weighted_kappa"] == pytest.approx(0, abs=0.05)
    assert metrics["macro_auroc"] == pytest.approx(0.5, abs=0.02)
    assert metrics["macro_auprc"] == pytest.approx(0.2, abs=0.02)
    assert metrics["mae"] == pytest.approx(1.6, abs=0.1)  # of two independent uniform grades


def test_perfect_scores_are_perfect():
    metrics = zero_shot_metrics(np.eye(5), np.arange(5))
    assert metrics.pop("mae") == 0
    metrics |= grade_metrics(np.eye(5), np.arange(5), "01234")
    assert set(metrics.values()) == {1.0}


def test_only_grades_that_occur_count():
    scores = np.eye(5)[[0, 0, 3, 4]]
    metrics = zero_shot_metrics(scores, np.array([0, 0, 3, 3]))
    assert metrics["balanced_accuracy"] == pytest.approx(0.75)  # grade 4 is predicted but never true
    assert metrics["macro_auroc"] == pytest.approx((1 + 0.75) / 2)


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_left_out():
    nothing = np.zeros((0, 5)), np.zeros(0, dtype=int)
    assert zero_shot_metrics(*nothing) == grade_metrics(*nothing, "01234") == {}
    agreeing = zero_shot_metrics(np.eye(5)[[2, 2]], np.array([2, 2]))
    assert agreeing == {"accuracy": 1.0, "balanced_accuracy": 1.0, "adjacent_accuracy": 1.0, "mae": 0.0}
    assert grade_metrics(np.eye(5)[[2, 2]], np.array([2, 2]), "01234") == {"grade_2.recall": 1.0}
    assert "quadratic_weighted_kappa" not in zero_shot_metrics(np.eye(5)[[2, 3]], np.array([2, 2]))


def test_kappa_of_many_confusions_at_once_equals_scikit_learn():
    pairs = [graded_scores(50, seed) for seed in range(3)]
    counts = [confusion_matrix(grades, scores.argmax(axis=1), labels=range(5)) for scores, grades in pairs]
    expected = [cohen_kappa_score(grades, scores.argmax(axis=1), weights="quadratic") for scores, grades in pairs]
    np.testing.assert_allclose(kappa_from_confusion(np.stack(counts)), expected)
    assert np.isnan(kappa_from_confusion(np.diag([0, 7, 0, 0, 0])))
    assert np.isnan(kappa_from_confusion(np.array([[99, 1], [0, 0]])))  # all of one grade, one misgraded
    assert kappa_from_confusion(np.array([[50, 0], [50, 0]])) == 0  # all graded alike: no better than chance


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
