import numpy as np
import pytest

from knee_siglip.core.errors import UsageError
from knee_siglip.validation.images.near_duplicates import Pair
from knee_siglip.validation.splits.leakage import check_repeated_images, find_leaks, patient_ids


def rows_left(table):
    return table.index.tolist()


def test_nothing_leaks(make_table):
    table = make_table(("train", "1", "a"), ("train", "1", "b"), ("val", "2", "c"), ("test", "3", "d"))
    kept, issues = find_leaks(table, "error")
    assert issues == []
    assert kept.equals(table)


def test_a_patient_in_two_splits_is_one_error_that_names_both(make_table):
    table = make_table(("train", "007", "a"), ("train", "007", "b"), ("test", "007", "c"), ("val", "2", "d"))
    kept, (issue,) = find_leaks(table, "error")
    assert (issue.severity, issue.check, issue.row, issue.file) == ("error", "patient_leak", 2, "0.png")
    assert issue.message == "patient 007 is in train (rows 2, 3) and test (row 4)"
    assert len(kept) == 4


@pytest.mark.parametrize("other", ["p7", " p007", "P 07 ", "p0007"])
def test_spellings_of_one_patient_are_one(make_table, other):
    _, (issue,) = find_leaks(make_table(("train", "P007", "a"), ("test", other, "b")), "error")
    assert issue.message == (
        f"patient 'P007', {other.strip()!r} (taken as one patient) is in train (row 2) and test (row 3)"
    )
    assert issue.related == (3,)


@pytest.mark.parametrize(("one", "other"), [("A1", "1"), ("7", "70"), ("7.01", "7.1"), ("1-2", "12"), ("0", "00x")])
def test_different_patients_stay_different(make_table, one, other):
    assert find_leaks(make_table(("train", one, "a"), ("test", other, "b")), "error")[1] == []


def test_a_study_in_two_splits_is_an_error(make_table):
    table = make_table(("train", "1", "a"), ("test", "2", "b")).assign(study_id=["S01", "s1"])
    _, (issue,) = find_leaks(table, "error")
    assert issue.check == "study_leak"
    assert "train (row 2) and test (row 3)" in issue.message


def test_equal_pixels_in_different_files_are_an_error(make_table):
    table = make_table(("train", "1", "a"), ("test", "2", "b")).assign(pixel_id="x")
    _, (issue,) = find_leaks(table, "error")
    assert issue.check == "pixel_leak"
    assert issue.message == "identical pixels in different files are in train (row 2) and test (row 3)"


def test_equal_bytes_are_not_named_again_as_equal_pixels(make_table):
    table = make_table(("train", "1", "a"), ("test", "2", "a")).assign(pixel_id="x")
    assert [issue.check for issue in find_leaks(table, "error")[1]] == ["image_leak"]


def test_near_duplicates_are_an_error_that_says_how_they_differ(make_table):
    table = make_table(("train", "1", "a"), ("test", "2", "b")).assign(pixel_id=["x", "y"])
    _, (issue,) = find_leaks(table, "error", [Pair(2, 3, 0.912, "mirrored", "x", "y")])
    assert (issue.check, issue.row, issue.related) == ("near_duplicate_leak", 2, (3,))
    assert "(similarity 0.91, mirrored): train (row 2) shows the same as test (row 3)" in issue.message


def test_near_duplicates_count_for_every_row_with_the_pixels(make_table):
    table = make_table(("train", "1", "a"), ("train", "3", "a"), ("test", "2", "b")).assign(pixel_id=["x", "x", "y"])
    kept, issues = find_leaks(table, "drop", [Pair(2, 4, 0.9, "mirrored", "x", "y")])
    assert rows_left(kept) == [4]
    assert [issue.row for issue in issues] == [2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_no_leak_of_any_kind_is_left_after_drop(make_table, seed):
    rng = np.random.default_rng(seed)
    splits = rng.choice(["train", "val", "test"], 30)
    table = make_table(*[(split, str(rng.integers(25)), str(rng.integers(25))) for split in splits])
    table = table.assign(pixel_id="p" + table["image_id"].str[-1], study_id=rng.integers(1, 40, 30).astype(str))
    pixels = sorted(set(table["pixel_id"]))
    pairs = [Pair(0, 0, 0.9, "mirrored", *rng.choice(pixels, 2, replace=False)) for _ in range(6)]
    kept, issues = find_leaks(table, "drop", pairs)
    assert find_leaks(kept, "error", pairs)[1] == []
    assert sorted([issue.row for issue in issues] + rows_left(kept)) == rows_left(table)
    assert (kept["split"] == "test").sum() == (table["split"] == "test").sum()


def test_unknown_patients_and_images_are_not_one_patient(make_table):
    assert find_leaks(make_table(("train", "", ""), ("test", "", ""), ("val", "", "")), "error")[1] == []


def test_the_same_image_in_two_splits_is_an_error(make_table):
    _, (issue,) = find_leaks(make_table(("train", "1", "a"), ("val", "2", "a")), "error")
    assert (issue.severity, issue.check) == ("error", "image_leak")
    assert issue.message == "the same image is in train (row 2) and val (row 3)"


def test_warn_keeps_and_flags(make_table):
    table = make_table(("train", "1", "a"), ("val", "1", "a"), ("test", "2", "b"))
    kept, issues = find_leaks(table, "warn")
    assert [issue.severity for issue in issues] == ["warning", "warning"]
    assert kept["flags"].tolist() == ["patient_leak;image_leak", "patient_leak;image_leak", ""]


@pytest.mark.parametrize(
    ("splits", "dropped"),
    [
        (["train", "test"], [2]),
        (["test", "train"], [3]),
        (["val", "test"], [2]),
        (["train", "val"], [2]),
        (["train", "val", "test"], [2, 3]),
        (["train", "test", "train"], [2, 4]),
    ],
)
@pytest.mark.parametrize("shared", ["patient", "image"])
def test_drop_takes_the_less_protected_split(make_table, splits, dropped, shared):
    triples = [(split, "p", str(n)) if shared == "patient" else (split, str(n), "i") for n, split in enumerate(splits)]
    kept, issues = find_leaks(make_table(*triples), "drop")
    assert [issue.row for issue in issues] == dropped
    assert {issue.severity for issue in issues} == {"dropped"}
    assert rows_left(kept) == [row for row in range(2, len(splits) + 2) if row not in dropped]


def test_every_dropped_row_says_why(make_table):
    _, (issue,) = find_leaks(make_table(("train", "9", "a"), ("test", "9", "b")), "drop")
    assert issue.message == "dropped from train: patient 9 is in train (row 2) and test (row 3)"


def test_drop_does_not_take_a_row_whose_conflict_is_already_gone(make_table):
    """Row 3 goes with its patient; row 2 shared an image with row 3 only, and stays."""
    kept, _ = find_leaks(make_table(("train", "1", "x"), ("val", "2", "x"), ("test", "2", "y")), "drop")
    assert rows_left(kept) == [2, 4]


def test_nothing_leaks_after_drop(make_table):
    table = make_table(
        ("train", "1", "a"), ("val", "1", "b"), ("test", "2", "b"), ("val", "3", "c"), ("train", "3", "c")
    )
    kept, _ = find_leaks(table, "drop")
    assert find_leaks(kept, "error")[1] == []
    assert (kept["split"] == "test").sum() == 1


def test_long_lists_of_rows_are_cut(make_table):
    _, (issue,) = find_leaks(make_table(*[("train", "1", str(n)) for n in range(9)], ("test", "1", "z")), "error")
    assert issue.message == "patient 1 is in train (rows 2, 3, 4, 5 and 5 more) and test (row 11)"


def test_the_same_bytes_twice_in_a_split_are_named(make_table):
    (issue,) = check_repeated_images(make_table(("train", "1", "a"), ("train", "2", "a"), ("val", "3", "b")))
    assert (issue.severity, issue.row) == ("warning", 2)
    assert "2 names: train (rows 2, 3)" in issue.message


def test_the_same_pixels_twice_in_a_split_are_named(make_table):
    table = make_table(("train", "1", "a"), ("train", "2", "b"), ("val", "3", "c")).assign(pixel_id=["x", "x", "y"])
    (issue,) = check_repeated_images(table)
    assert (issue.severity, issue.check) == ("warning", "repeated_pixels")
    assert "2 names: train (rows 2, 3)" in issue.message


def test_patient_column_is_taken(make_table):
    ids, issues = patient_ids(make_table(("train", " 007 ", "a"), ("test", "8", "b")), None)
    assert ids.tolist() == ["007", "8"]
    assert issues == []


def test_pattern_fills_what_the_column_does_not_say(make_table):
    ids, issues = patient_ids(make_table(("train", "007", "a"), ("test", "", "b")), r"(\d+)\.png")
    assert ids.tolist() == ["007", "1"]
    assert issues == []


def test_pattern_alone_gives_ids(make_table):
    table = make_table(("train", "", "a"), ("test", "", "b")).drop(columns="patient_id")
    table["img_path"] = ["OAI/9001104L.png", "OAI/none.png"]
    ids, (issue,) = patient_ids(table, r"(\d{7})[LR]")
    assert ids.tolist() == ["9001104", ""]
    assert (issue.severity, issue.check) == ("warning", "unknown_patient")
    assert issue.message.startswith("no patient is known of 1 of 2 rows, the first 3:")


def test_without_column_and_pattern_a_warning_says_what_cannot_be_checked(make_table):
    table = make_table(("train", "", "a"), ("test", "", "b")).drop(columns="patient_id")
    ids, (issue,) = patient_ids(table, None)
    assert ids.tolist() == ["", ""]
    assert "data.patient_id_pattern" in issue.message


@pytest.mark.parametrize(("pattern", "reason"), [("(", "no regular expression"), (r"\d+", "no group")])
def test_wrong_pattern_names_the_parameter(make_table, pattern, reason):
    with pytest.raises(UsageError, match=rf"data\.patient_id_pattern.*{reason}"):
        patient_ids(make_table(("train", "", "a")), pattern)


@pytest.mark.parametrize("placeholder", ["nan", "Unknown", "NA", "0", "xxx"])
def test_drop_keeps_rows_whose_patient_is_a_placeholder(make_table, placeholder):
    table = make_table(("train", placeholder, "a"), ("test", placeholder, "b"), ("test", "9000099", "c"))
    patients, issues = patient_ids(table, None)
    kept, leaks = find_leaks(table.assign(patient_id=patients), "drop")
    assert len(kept) == 3
    assert leaks == []
    assert [issue.check for issue in issues] == ["placeholder_id", "unknown_patient"]
    assert f"2 of 3 rows have a placeholder as patient_id, taken as unknown: {placeholder!r} (2)" in issues[0].message


def test_rounded_ids_are_named_and_join_nobody(make_table):
    table = make_table(("train", "9.00E+06", "a"), ("test", "9.00E+06", "b"))
    patients, issues = patient_ids(table, None)
    assert patients.tolist() == ["", ""]
    assert [(issue.check, issue.row) for issue in issues[:2]] == [("rounded_id", 2), ("rounded_id", 3)]
