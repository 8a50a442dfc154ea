"""Probes learn from train, choose on val, and find what is there to be found and nothing else."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier

from knee_siglip.evaluation.linear_probe import (
    C_GRID,
    NEIGHBOURS,
    draw_labels,
    probe_metrics,
    probe_table,
)


def measured(split, data):
    return probe_metrics(probe_table(split, data))


@pytest.fixture
def three(make_split, data_of):
    """Test, with train and val."""

    def make(noise=0.5, count=160, **train):
        test = make_split(noise=noise, seed=1, count=count)
        others = (
            make_split(noise=noise, seed=2, name="train", count=600, **train),
            make_split(noise=noise, seed=3, name="val"),
        )
        return test, data_of(test, *others)

    return make


def test_all_names_of_the_contract_are_there(three):
    figures = ("accuracy", "quadratic_weighted_kappa")
    shares = [f"linear_probe.share_{share}.{figure}" for share in (1, 10, 100) for figure in figures]
    single = [*shares[4:], *(f"knn.{figure}" for figure in figures)]
    ends = (f"{name}_ci_{end}" for name in single for end in ("low", "high"))
    metrics = measured(*three())
    assert metrics.keys() == {*shares, *single, *(f"{name}_std" for name in shares[:4]), *ends}
    for name in single:
        assert metrics[f"{name}_ci_low"] < metrics[name] < metrics[f"{name}_ci_high"]


def test_all_labels_equal_scikit_learn_with_c_chosen_on_val(three):
    test, data = three()
    train, val = data.splits["train"], data.splits["val"]
    fits = [LogisticRegression(C=c, max_iter=200).fit(train.image_embeds, train.grades) for c in C_GRID]
    best = max(fits, key=lambda fit: fit.score(val.image_embeds, val.grades))
    predicted = best.predict(test.image_embeds)
    metrics = measured(test, data)
    assert metrics["linear_probe.share_100.accuracy"] == (predicted == test.grades).mean()
    assert metrics["linear_probe.share_100.quadratic_weighted_kappa"] == pytest.approx(
        cohen_kappa_score(test.grades, predicted, weights="quadratic")
    )
    assert "linear_probe.share_100.accuracy_std" not in metrics


def test_neighbours_equal_scikit_learn_with_k_chosen_on_val(three):
    test, data = three()
    train, val = data.splits["train"], data.splits["val"]
    fits = [KNeighborsClassifier(k).fit(train.image_embeds, train.grades) for k in NEIGHBOURS]
    best = max(fits, key=lambda fit: fit.score(val.image_embeds, val.grades))
    assert measured(test, data)["knn.accuracy"] == best.score(test.image_embeds, test.grades)


def test_more_labels_are_better_and_few_ones_vary_with_the_seed(three):
    metrics = measured(*three(count=400))
    shares = [metrics[f"linear_probe.share_{share}.accuracy"] for share in (1, 10, 100)]
    assert shares[0] < shares[1] < shares[2]
    assert metrics["linear_probe.share_1.accuracy_std"] > metrics["linear_probe.share_10.accuracy_std"] > 0


def test_the_table_averages_to_the_metrics(three):
    table = probe_table(*three())
    accuracies = [row["accuracy"] for row in table if row["method"] == "linear_probe" and row["share"] == 10]
    assert len(accuracies) == 5
    metrics = probe_metrics(table)
    assert metrics["linear_probe.share_10.accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["linear_probe.share_10.accuracy_std"] == pytest.approx(np.std(accuracies))
    assert [row["patients"] for row in table if row["share"] == 10] == [30] * 5


def test_shuffled_grades_are_at_chance(three):
    test, data = three(count=2000)
    train = data.splits["train"]
    train.rows["kl_grade"] = np.random.default_rng(0).permutation(train.rows["kl_grade"])
    metrics = measured(test, data)
    for name in ("linear_probe.share_10", "linear_probe.share_100", "knn"):
        # five clusters of images: which grade the noise gives each of them is luck
        assert metrics[f"{name}.accuracy"] == pytest.approx(0.2, abs=0.06)
        assert metrics[f"{name}.quadratic_weighted_kappa"] == pytest.approx(0, abs=0.2)


def test_the_evaluated_grades_are_not_learnt_from(three):
    test, data = three()
    before = probe_table(test, data)
    test.rows["kl_grade"] = np.random.default_rng(0).permutation(test.rows["kl_grade"])
    other = dataclasses.replace(test)  # without what was computed from the old grades
    after = probe_table(other, dataclasses.replace(data, splits=data.splits | {"test": other}))
    assert [row["chosen"] for row in before] == [row["chosen"] for row in after]
    assert after[-1]["accuracy"] < 0.4 < before[-1]["accuracy"]


@pytest.mark.parametrize("learnt_from", ["train", "val"])
def test_what_is_learnt_from_is_not_evaluated(three, learnt_from):
    _, data = three()
    assert measured(data.splits[learnt_from], data) == {}


@pytest.mark.filterwarnings("error")
def test_without_labels_there_is_no_probe(make_split, data_of):
    test, train, val = make_split(), make_split(name="train"), make_split(name="val")
    blind = {name: make_split(name=name, graded=False) for name in ("test", "train", "val")}
    for splits in (
        (test,),
        (test, train),
        (test, val),
        (test, blind["train"], val),
        (test, train, blind["val"]),
        (blind["test"], train, val),
    ):
        assert measured(splits[0], data_of(*splits)) == {}


@pytest.mark.filterwarnings("error")
def test_a_single_grade_in_train_teaches_no_line(make_split, data_of):
    test, train, val = make_split(), make_split(name="train"), make_split(name="val")
    train.rows["kl_grade"] = 2
    metrics = measured(test, data_of(test, train, val))
    assert all(name.startswith("knn.") for name in metrics)
    assert metrics["knn.quadratic_weighted_kappa"] == 0


@pytest.mark.filterwarnings("error")
def test_a_few_rows_are_enough(make_split, data_of):
    test, data = make_split(count=2, seed=1), [make_split(count=4, name=name) for name in ("train", "val")]
    metrics = measured(test, data_of(test, *data))
    assert all(np.isfinite(value) for value in metrics.values())


def test_of_many_labels_a_fixed_sample_of_whole_patients_is_used_and_said(three, monkeypatch):
    monkeypatch.setattr("knee_siglip.evaluation.linear_probe.MOST_ROWS", 150)
    test, data = three()
    table = probe_table(test, data)
    assert {row["available"] for row in table} == {600}
    assert [row["labels"] for row in table if row["share"] == 100] == [150, 150]
    metrics = probe_metrics(table)
    assert (metrics["linear_probe.train_rows"], metrics["linear_probe.train_rows_available"]) == (150, 600)
    assert probe_table(test, data) == table


def drawn_patients(share, seed, grades, patients):
    return set(patients[draw_labels(grades, patients, share, seed)])


def test_patients_are_drawn_whole_and_in_the_proportions_of_their_worst_grades():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(1000), 2)
    grades = rng.choice(5, 2000, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    worst = grades.reshape(1000, 2).max(axis=1)
    rows = draw_labels(grades, patients, 10, seed=3)
    assert len(rows) == 200
    np.testing.assert_array_equal(np.unique(patients[rows], return_counts=True)[1], 2)
    drawn = np.bincount(worst[np.unique(patients[rows])], minlength=5)
    assert (abs(drawn - np.bincount(worst) / 10) <= 1).all()


def test_seeds_draw_different_patients_and_a_larger_share_holds_the_smaller_one():
    rng = np.random.default_rng(0)
    grades, patients = rng.integers(0, 5, 400), np.arange(400) // 2
    one, ten = (drawn_patients(share, 0, grades, patients) for share in (1, 10))
    assert one < ten
    assert ten != drawn_patients(10, 1, grades, patients)
    assert drawn_patients(100, 0, grades, patients) == set(range(200))


def test_each_worst_grade_has_a_patient_however_small_the_share():
    grades, patients = np.repeat([0, 1, 2, 3, 4], [80, 10, 6, 3, 1]), np.arange(100)
    assert sorted(grades[draw_labels(grades, patients, 1, seed=0)]) == [0, 1, 2, 3, 4]
