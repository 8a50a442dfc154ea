"""What metrics.json says of each split, and which rows are one patient."""

import json

import pandas as pd
import pytest

from knee_siglip.validation.splits.cohort import VALUES_SHOWN, cohort_metrics, counts
from toys import KNEE


@pytest.fixture
def table() -> pd.DataFrame:
    """Spreadsheet rows 2-6: two knees of patient 1 and an unreadable image of patient 2 in train, two rows in test."""
    return pd.DataFrame(
        {
            "split": ["train", "train", "train", "test", "test"],
            "patient_id": ["1", "01", "2", "3", ""],
            "image_id": ["a", "b", "", "c", "d"],
            "text": ["normal knee", "normal knee", "severe oa of left knee", "mild oa", "mild oa"],
            "side": ["left", "Right ", "left", "", "left"],
            "view": ["ap", "ap", "lateral", "ap", "ap"],
            "kl_grade": pd.array([0, 0, 4, 1, None], dtype="Int64"),
            "width": [500, 300, 0, 400, 400],
            "height": [600, 200, 0, 400, 400],
            "bits": [8, 16, 0, 8, 8],
            "mean": [100.0, 120.0, 0.0, 90.0, 91.0],
            "std": [30.0, 50.0, 0.0, 20.0, 20.0],
            "file_bytes": [1000, 3000, 0, 2000, 2000],
        },
        index=pd.RangeIndex(2, 7, name="row"),
    )


def test_split_holds_rows_patients_grades_and_images(table: pd.DataFrame) -> None:
    assert cohort_metrics(table, KNEE)["train"] == {
        "rows": 3,
        "patients": 2,
        "images": 2,
        "distinct_texts": 2,
        "kl_grades": {"0": 2, "1": 0, "2": 0, "3": 0, "4": 1},
        "views": {"ap": 2, "lateral": 1},
        "sides": {"left": 2, "right": 1, "unknown": 0},
        "text_words": {"mean": 3.0, "median": 2.0, "max": 5.0},
        "width": {"median": 400.0, "min": 300.0, "max": 500.0},
        "height": {"median": 400.0, "min": 200.0, "max": 600.0},
        "bits": {"8": 1, "16": 1},
        "intensity": {"mean": 110.0, "std": 40.0},
        "file_bytes": {"median": 2000.0},
        "images_per_patient": {"mean": 2.0, "max": 2.0},
    }


def test_every_split_has_the_same_views_and_sides(table: pd.DataFrame) -> None:
    facts = cohort_metrics(table, KNEE)
    assert facts["test"]["views"] == {"ap": 2, "lateral": 0}
    assert facts["test"]["sides"] == {"left": 1, "right": 0, "unknown": 1}


def test_empty_split_and_empty_table_hold_no_nan(table: pd.DataFrame) -> None:
    for rows in (table, table.iloc[:0], table.assign(image_id="")):
        text = json.dumps(cohort_metrics(rows, KNEE), allow_nan=False)
        assert json.loads(text)["val"]["rows"] == 0


def test_columns_that_a_table_lacks_have_no_key(table: pd.DataFrame) -> None:
    facts = cohort_metrics(table.drop(columns=["view", "side", "kl_grade"]), KNEE)
    assert not {"views", "sides", "kl_grades"} & set(facts["train"])


def test_free_text_in_a_column_does_not_fill_the_metrics() -> None:
    count = VALUES_SHOWN + 15
    names = [f"view {number}" for number in range(count)]
    table = pd.DataFrame({"split": "train", "patient_id": "", "image_id": "", "text": "a knee", "view": names})
    views = cohort_metrics(table, KNEE)["train"]["views"]
    assert len(views) == VALUES_SHOWN + 1
    assert views["other"] == 15


def test_counts_leave_out_what_is_unknown(table: pd.DataFrame) -> None:
    assert counts(table) == {"rows": 5, "patients": 3, "images": 4, "distinct_texts": 3}
