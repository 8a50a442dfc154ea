"""The CSV of a second test set: checked as the first one, and kept apart from what is trained on."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.tables.manifest import read_manifest

CSV = "hospital_b/test.csv"
HEADER = ["img_path", "impression", "patient_id", "kl_grade", "hospital"]


@pytest.fixture
def rows(project):
    """Two rows of another hospital, whose images lie beside their CSV."""
    (project.folder / "hospital_b").mkdir()
    rng = np.random.default_rng(9)
    for number in range(2):
        grey = rng.integers(0, 156, (12, 10))
        grey[:, 3:7] += 100
        Image.fromarray(grey.astype(np.uint8)).save(project.folder / f"hospital_b/{number}.png")
    return [[f"{number}.png", f"Large effusion, film {number}.", f"B{number}", str(number), "B"] for number in range(2)]


def run(project, rows, header=HEADER, **options):
    with (project.folder / CSV).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return project.run(external=CSV, **options)


def test_rows_get_a_manifest_of_their_own_and_change_no_byte_of_the_first(project, rows):
    project.run()
    alone = paths.MANIFEST.read_bytes()
    outcome = run(project, rows)
    assert (outcome.error, outcome.issues[0]["check"], len(outcome.issues)) == ("", "outside_images", 1)
    assert paths.MANIFEST.read_bytes() == alone
    external = read_manifest(paths.EXTERNAL_MANIFEST)
    assert external["image_file"].tolist() == ["hospital_b/0.png", "hospital_b/1.png"]
    assert external[["split", "hospital", "kl_grade"]].values.tolist() == [["external", "B", 0], ["external", "B", 1]]
    assert outcome.metrics["splits"]["external"]["rows"] == 2


def test_without_rows_there_is_no_second_test_set(project, rows):
    outcome = run(project, [])
    assert (outcome.issues, len(read_manifest(paths.EXTERNAL_MANIFEST))) == ([], 0)
    assert "external" not in outcome.metrics["splits"]


def test_a_patient_of_train_in_it_is_an_error_that_names_both_rows(project, rows):
    rows[1][2] = project.rows[0][3]
    outcome = run(project, rows)
    (leak,) = outcome.of("patient_leak")
    assert leak["message"] == f"patient 000 is in train (row 2) and external (row 3 of {CSV})"
    assert not paths.MANIFEST.exists()
    assert not paths.EXTERNAL_MANIFEST.exists()


def test_a_copied_image_is_found(project, rows):
    shutil.copy(project.image(4), project.folder / "hospital_b/0.png")
    (leak,) = run(project, rows).of("image_leak")
    assert leak["message"] == f"the same image is in train (row 4) and external (row 2 of {CSV})"


def test_drop_takes_rows_from_it_and_never_from_train(project, rows):
    rows[1][2] = project.rows[0][3]
    outcome = run(project, rows, on_leak="drop")
    (dropped,) = outcome.of("patient_leak")
    assert (dropped["row"], dropped["message"].split(":")[0]) == ("3", CSV)
    assert len(read_manifest()) == len(project.rows)
    assert len(read_manifest(paths.EXTERNAL_MANIFEST)) == 1


@pytest.mark.parametrize(
    ("spoil", "check", "said"),
    [
        (lambda rows: rows[0].__setitem__(0, "none.png"), "missing_image", f"{CSV}: "),
        (lambda rows: rows[0].__setitem__(3, "7"), "bad_label", f"{CSV}: kl_grade is '7'"),
        (lambda rows: rows[0].__setitem__(1, ""), "empty_text", f"{CSV}: "),
    ],
)
def test_errors_name_its_rows(project, rows, spoil, check, said):
    spoil(rows)
    (issue,) = [issue for issue in run(project, rows).issues if issue["severity"] == "error"]
    assert (issue["row"], issue["check"]) == ("2", check)
    assert issue["message"].startswith(said)


def test_missing_columns_are_named(project, rows):
    (issue,) = run(project, [row[:1] for row in rows], header=["img_path"]).issues
    assert (issue["check"], issue["file"]) == ("missing_column", CSV)
    assert Path(issue["file"]).is_file()
