"""Studies of several images, as rows or as columns of one row."""

import pytest
from PIL import Image, ImageOps


@pytest.fixture
def wide(project):
    """The project's rows with a lateral view beside the first image of rows 2-4 and 7."""
    project.header = ["img_path_ap", *project.header[1:], "img_path_lateral"]
    for row in project.rows:
        row.append("")
    for row in (2, 3, 4, 7):
        name = f"images/lateral_{row}.png"
        image = Image.open(project.image(row)).resize((10, 12))
        ImageOps.solarize(image.transpose(Image.Transpose.TRANSPOSE)).save(project.folder / "data" / name)
        project.set(row, "img_path_lateral", name)
    return project


def test_view_columns_become_rows_of_one_study(wide):
    outcome = wide.run()
    assert outcome.error == ""
    manifest = outcome.manifest
    assert len(manifest) == 11
    assert manifest["view"].tolist()[:4] == ["ap", "lateral", "ap", "lateral"]
    assert manifest["study_id"].tolist()[:3] == ["row 2", "row 2", "row 3"]
    assert manifest["text"].iloc[0] == manifest["text"].iloc[1]
    assert "img_path_lateral" not in manifest
    assert "csv_row" not in manifest


def test_issues_name_the_csv_row_and_the_view(wide):
    wide.set(3, "img_path_lateral", "images/nowhere.png")
    wide.set(7, "img_path_lateral", "images/P000_left.png")
    outcome = wide.run()
    (missing,) = outcome.of("missing_image")
    assert (missing["row"], missing["file"]) == ("3", "images/nowhere.png")
    (leak,) = outcome.of("image_leak")
    assert "test (row 7 (lateral))" in leak["message"]
    assert (leak["row"], leak["related"]) == ("2", "7")


def test_a_study_of_two_texts_is_named(project):
    project.header.append("study_id")
    for row, study in zip(project.rows, ["S1", "s-1", "S1", "S4", "", "S6", "unknown"], strict=True):
        row.append(study)
    for row in (2, 4):
        project.set(row, "patient_id", "P1")
    (issue,) = project.run().of("study_texts")
    assert (issue["severity"], issue["row"]) == ("warning", "2")
    assert "study S1 has 2 different texts" in issue["message"]
    assert "(rows 2, 4)" in issue["message"]
    project.set(4, "impression", project.rows[0][1])
    assert not project.run().of("study_texts")


def test_a_study_of_two_patients_is_an_error(project):
    project.header.append("study_id")
    for row in project.rows:
        row.append("")
    for row in (2, 3):
        project.set(row, "study_id", "study1")
    outcome = project.run()
    (issue,) = outcome.of("study_of_several_patients")
    assert (issue["severity"], issue["row"]) == ("error", "2")
    assert "study study1 has 2 patients" in issue["message"]
    project.set(3, "patient_id", "unknown")
    assert not project.run().of("study_of_several_patients")
