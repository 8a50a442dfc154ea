"""Shortcuts: what gives grade or split away is found, and shuffled labels give no alarm."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from knee_siglip.validation.splits import shortcuts
from knee_siglip.validation.splits.shortcuts import check_shortcuts, clustered_auroc
from toys import KNEE

MakeCohort = Callable[..., pd.DataFrame]


@pytest.fixture
def make_cohort() -> MakeCohort:
    """Two knees of each patient; grade and split have nothing to do with the files."""

    def make(patients: int = 200, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        person = np.repeat(np.arange(patients), 2)
        count = len(person)
        return pd.DataFrame(
            {
                "split": rng.choice(["train", "val", "test"], patients, p=[0.6, 0.2, 0.2])[person],
                "patient_id": [f"P{number}" for number in person],
                "image_id": [f"{number}" for number in range(count)],
                "kl_grade": pd.array(rng.choice(5, count, p=[0.3, 0.2, 0.2, 0.2, 0.1]), dtype="Int64"),
                "width": 512,
                "height": rng.integers(500, 700, patients)[person],
                "bits": 8,
                "kind": "PNG L",
                "mean": rng.normal(120, 20, patients)[person] + rng.normal(0, 3, count),
                "std": rng.normal(40, 5, count),
                "file_bytes": rng.integers(50_000, 90_000, patients)[person],
            },
            index=pd.RangeIndex(2, count + 2, name="row"),
        )

    return make


def _only_alarm(table: pd.DataFrame) -> tuple[str, str]:
    _, (issue,) = check_shortcuts(table, KNEE)
    assert (issue.severity, issue.row) == ("warning", None)
    return issue.check, issue.message


def test_bit_depth_that_gives_a_grade_away_is_found(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    deep = (table["kl_grade"] == 4).to_numpy()
    table = table.assign(bits=np.where(deep, 16, 8), kind=np.where(deep, "PNG I;16", "PNG L"))
    check, message = _only_alarm(table)
    assert check == "grade_shortcut"
    assert message.startswith("the bit depth and file format tell kl_grade 4 from the rest")
    assert check_shortcuts(table, KNEE)[0]["kl_grade"]["depth"]["highest"] == 1.0


def test_file_format_alone_is_found(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    check, message = _only_alarm(table.assign(kind=np.where(table["kl_grade"] >= 2, "JPEG L", "PNG L")))
    assert check == "grade_shortcut"
    assert "bit depth and file format" in message


def test_mean_grey_that_follows_the_grade_is_found(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    check, message = _only_alarm(table.assign(mean=table["mean"] + 40 * table["kl_grade"].astype(float)))
    assert check == "grade_shortcut"
    assert "the mean and spread of the greys" in message


def test_a_middle_range_is_found_as_well_as_a_trend(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    middle = table["file_bytes"].between(62_000, 78_000)
    grades = pd.array(np.where(middle, 3, 0), dtype="Int64")
    check, message = _only_alarm(table.assign(kl_grade=grades))
    assert check == "grade_shortcut"
    assert "the file size tells kl_grade" in message


def test_file_size_that_separates_the_splits_is_found(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    larger = table["file_bytes"] + 30_000 * (table["split"] == "test")
    check, message = _only_alarm(table.assign(file_bytes=larger))
    assert check == "split_shortcut"
    assert message.startswith("the file size tells test from the other splits")


def test_training_images_of_another_size_are_found(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    side = np.where(table["split"] == "train", 512, 500)
    check, message = _only_alarm(table.assign(width=side, height=side))
    assert check == "split_shortcut"
    assert "width and height tell train" in message


def test_features_that_only_together_give_it_away_are_named_as_such(make_cohort: MakeCohort) -> None:
    """Large and dark, or small and bright: either alone says little."""
    table = make_cohort(patients=400)
    large, bright = table["file_bytes"] > 66_000, table["mean"] > 115
    check, message = _only_alarm(table.assign(kl_grade=pd.array(np.where(large != bright, 3, 0), dtype="Int64")))
    assert check == "grade_shortcut"
    assert message.startswith("file size, dimensions, bit depth and mean grey together tell kl_grade")


def test_shuffled_labels_give_no_alarm(make_cohort: MakeCohort) -> None:
    for seed in range(5):
        assert check_shortcuts(make_cohort(patients=(30, 60, 150)[seed % 3], seed=seed), KNEE)[1] == []


def test_a_feature_of_the_patient_is_not_learnt_by_heart(make_cohort: MakeCohort) -> None:
    """File size is the patient's own, and so is the grade: with a patient on both sides of a fold it would be known."""
    table = make_cohort(patients=60)
    grades = pd.Series(np.random.default_rng(1).choice(2, 60) * 3).repeat(2)
    table = table.assign(kl_grade=pd.array(grades.to_numpy(), dtype="Int64"))
    copies = pd.concat([table] * 6, ignore_index=True)
    assert check_shortcuts(copies, KNEE)[0]["kl_grade"]["file_size"]["auroc"] < 0.65
    assert check_shortcuts(copies, KNEE)[1] == []
    assert check_shortcuts(copies.assign(patient_id=""), KNEE)[1] != []


def test_too_few_rows_or_classes_are_left_out(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    assert check_shortcuts(table.iloc[:0], KNEE) == ({}, [])
    assert check_shortcuts(table.iloc[:40], KNEE) == ({}, [])
    one_grade = table.assign(kl_grade=pd.array([2] * len(table), dtype="Int64"), split="train")
    assert check_shortcuts(one_grade, KNEE) == ({}, [])
    assert list(check_shortcuts(table.drop(columns="kl_grade"), KNEE)[0]) == ["split"]


def test_a_grade_of_few_patients_gives_no_alarm(make_cohort: MakeCohort) -> None:
    """Five patients with the only 16-bit files: too few to say whether it is chance."""
    table = make_cohort(patients=300)
    rare = table["patient_id"].isin([f"P{number}" for number in range(5)]).to_numpy()
    grades = pd.array(np.where(rare, 4, 0), dtype="Int64")
    assert check_shortcuts(table.assign(kl_grade=grades, bits=np.where(rare, 16, 8)), KNEE)[1] == []


def test_unreadable_images_are_no_shortcut(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    broken = (table["split"] == "test").to_numpy() & (np.arange(len(table)) % 3 == 0)
    table.loc[broken, ["width", "height", "bits", "mean", "std", "file_bytes"]] = 0
    assert check_shortcuts(table.assign(image_id=table["image_id"].where(~broken, "")), KNEE)[1] == []


def test_large_tables_are_sampled_by_patients(make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "MAX_ROWS", 300)
    table = make_cohort(patients=400)
    deep = np.where(table["kl_grade"] >= 2, 16, 8)
    rows = shortcuts._draw(table.assign(bits=deep))
    assert 290 <= len(rows) <= 300
    assert (rows.groupby("patient_id").size() == 2).all()
    assert _only_alarm(table.assign(bits=deep))[0] == "grade_shortcut"


def test_clustered_auroc_agrees_with_scikit_learn_and_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(80), 2)
    score = rng.normal(0, 1, 80)[patients] + rng.normal(0, 0.3, 160)
    positive = rng.normal(0, 1, 80)[patients] + 0.7 * score > 0
    auroc, error = clustered_auroc(np.round(score, 1), positive, patients)
    assert auroc == pytest.approx(roc_auc_score(positive, np.round(score, 1)))
    draws = []
    for _ in range(400):
        rows = np.concatenate([[2 * patient, 2 * patient + 1] for patient in rng.integers(0, 80, 80)])
        draws.append(roc_auc_score(positive[rows], np.round(score, 1)[rows]))
    assert error == pytest.approx(np.std(draws), rel=0.15)
