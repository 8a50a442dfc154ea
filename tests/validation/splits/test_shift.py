"""Shift between the splits: found where it is real, silent under random splits and for trifles in large sets."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from knee_siglip.validation.splits.shift import Weighted, check_shift, cramers_v, kolmogorov_smirnov
from toys import KNEE

MakeCohort = Callable[..., pd.DataFrame]


@pytest.fixture
def make_cohort() -> MakeCohort:
    """Two knees of each patient, who resemble each other; patients fall into the splits at random."""

    def make(patients: int = 600, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        person = np.repeat(np.arange(patients), 2)
        count = len(person)
        build = rng.normal(0, 1, patients)[person]
        return pd.DataFrame(
            {
                "split": rng.choice(["train", "val", "test"], patients, p=[0.6, 0.2, 0.2])[person],
                "patient_id": [f"P{number}" for number in person],
                "image_id": [f"{number}" for number in range(count)],
                "text": ["oa " * words for words in rng.integers(3, 12, count)],
                "side": np.tile(["left", "right"], patients),
                "view": rng.choice(["ap", "lateral"], count, p=[0.8, 0.2]),
                "kl_grade": pd.array(np.clip(np.round(1.5 + build + rng.normal(0, 0.5, count)), 0, 4), dtype="Int64"),
                "width": 512,
                "height": rng.integers(500, 700, count),
                "bits": 8,
                "kind": "PNG L",
                "mean": 120 + 20 * build + rng.normal(0, 3, count),
                "std": 40 + rng.normal(0, 5, count),
                "file_bytes": rng.integers(50_000, 90_000, count),
            },
            index=pd.RangeIndex(2, count + 2, name="row"),
        )

    return make


def _alarms(table: pd.DataFrame) -> list[str]:
    return [issue.message for issue in check_shift(table, KNEE)[1]]


def _in(table: pd.DataFrame, split: str) -> np.ndarray:
    return (table["split"] == split).to_numpy()


def test_random_splits_give_no_alarm(make_cohort: MakeCohort) -> None:
    for seed in range(10):
        assert _alarms(make_cohort(seed=seed)) == []


def test_brighter_test_images_are_named_with_both_medians(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    table["mean"] += 30 * _in(table, "test")
    figures, issues = check_shift(table, KNEE)
    (issue,) = issues
    assert (issue.severity, issue.check, issue.row) == ("warning", "distribution_shift", None)
    assert issue.message.startswith("the mean grey (0-255) differs between train and test: median 1")
    assert figures["test"]["mean"]["ks"] > 0.4
    assert figures["test"]["mean"]["ks_p"] < 0.01
    assert figures["val"]["mean"]["ks_p"] > 0.01


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("width", 500, "the image width differs"),
        ("text", "one two three four five six seven eight nine ten eleven twelve", "the length of the texts"),
        ("view", "lateral", "the view differs between train and val: ap is 8"),
        ("bits", 16, "the bit depth differs between train and val: 16 is 0% of train and 100% of val"),
        ("kind", "JPEG L", "the file format differs"),
    ],
)
def test_each_kind_of_feature_is_compared(make_cohort: MakeCohort, column: str, value: object, said: str) -> None:
    table = make_cohort()
    table[column] = table[column].where(~_in(table, "val"), value)
    assert len(alarms := _alarms(table)) == 1
    assert said in alarms[0]


def test_grades_that_shift_are_named_once(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    worse = (table["kl_grade"] + _in(table, "test")).clip(upper=4)
    assert len(alarms := _alarms(table.assign(kl_grade=worse))) == 1
    assert "the kl_grade differs between train and test" in alarms[0]


def test_grades_that_gather_at_both_ends_are_named_by_their_share(make_cohort: MakeCohort) -> None:
    """The order says little here: the cumulative shares cross."""
    table = make_cohort()
    outer = table["kl_grade"].where(~_in(table, "test") | (table["kl_grade"] != 2), np.arange(len(table)) % 2 * 4)
    assert len(alarms := _alarms(table.assign(kl_grade=outer.astype("Int64")))) == 1
    assert "2 is 3" in alarms[0]
    assert "of train and 0% of test (Cramer's V" in alarms[0]


def test_a_trifle_among_many_rows_is_no_alarm(make_cohort: MakeCohort) -> None:
    table = make_cohort(patients=20_000)
    table["mean"] += 2.5 * _in(table, "test")
    figures, issues = check_shift(table, KNEE)
    assert figures["test"]["mean"]["ks_p"] < 0.01
    assert issues == []


def test_a_large_gap_between_few_patients_is_no_alarm(make_cohort: MakeCohort) -> None:
    for seed in range(10):
        assert _alarms(make_cohort(patients=60, seed=seed)) == []


def test_many_images_of_a_patient_are_no_evidence_of_their_own(make_cohort: MakeCohort) -> None:
    few = make_cohort(patients=60, seed=3)
    few["mean"] += 8 * _in(few, "test")
    copies = [few.assign(image_id=few["image_id"] + f"-{copy}") for copy in range(10)]
    many = pd.concat(copies, ignore_index=True)
    assert check_shift(many, KNEE)[0] == check_shift(few, KNEE)[0]
    assert _alarms(few) == _alarms(many) == []
    assert len(_alarms(many.assign(patient_id=""))) > 0


def test_unreadable_images_and_unknown_grades_are_left_out(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    broken = _in(table, "test") & (np.arange(len(table)) % 3 == 0)
    table.loc[broken, ["mean", "width", "height", "std", "file_bytes"]] = 0
    table.loc[broken, "image_id"] = ""
    table.loc[_in(table, "val"), "kl_grade"] = pd.NA
    figures, issues = check_shift(table, KNEE)
    assert issues == []
    assert "kl_grade" not in figures["val"]


def test_tables_with_little_in_them_are_not_compared(make_cohort: MakeCohort) -> None:
    table = make_cohort()
    for rows in (table.iloc[:0], table[table["split"] == "train"], table.iloc[:8]):
        assert check_shift(rows, KNEE) == ({}, [])


def test_cramers_v_is_zero_for_equal_and_one_for_disjoint_shares() -> None:
    assert cramers_v(np.array([[0.3, 0.3], [0.7, 0.7]])) == pytest.approx(0)
    assert cramers_v(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(1)
    assert cramers_v(np.array([[0.5, 0.65], [0.5, 0.35]])) == pytest.approx(0.152, abs=0.001)


def test_kolmogorov_smirnov_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 30, 90).astype(float), rng.integers(5, 35, 40).astype(float)
    found = kolmogorov_smirnov(Weighted(first, np.ones(90)), Weighted(second, np.ones(40)))
    assert found == pytest.approx(ks_2samp(first, second).statistic)
