import csv
import hashlib
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.params.files import parse_params
from knee_siglip.report.validation.page import write_validation_page
from knee_siglip.tables.manifest import read_manifest
from knee_siglip.tables.shards import Shard
from knee_siglip.tables.text import normalise_text
from knee_siglip.validation.images import inspection
from knee_siglip.validation.rows import check_outside
from knee_siglip.validation.validate import inspect_shard
from toys import KNEE

MANIFEST = Path("data/validated/manifest.parquet")


def only(outcome, check, severity="error"):
    """The one issue of a run, which must be of this check."""
    (issue,) = outcome.issues
    assert (issue["check"], issue["severity"]) == (check, severity)
    return issue


def test_good_rows_become_the_manifest(project):
    outcome = project.run()
    assert (outcome.error, outcome.issues) == ("", [])
    manifest = read_manifest()
    assert manifest.equals(outcome.manifest.reset_index(drop=True))
    assert manifest["img_path"].tolist() == [row[0] for row in project.rows]
    assert manifest["patient_id"].tolist() == [row[3] for row in project.rows]
    assert manifest["image_file"][0] == "data/images/P000_left.png"
    assert manifest["image_id"][0] == hashlib.sha256(project.image(2).read_bytes()).hexdigest()
    assert manifest.loc[0, ["width", "height", "bits"]].tolist() == [10, 12, 8]
    assert manifest["text"][3] == normalise_text("Small joint effusion, film number 3.")
    assert (manifest["flags"] == "").all()


def test_same_input_same_manifest_bytes(project):
    project.run()
    first = MANIFEST.read_bytes()
    project.run()
    assert MANIFEST.read_bytes() == first


def test_other_columns_are_carried_as_text(project):
    project.header.append("boxes")
    for row in project.rows:
        row.append('{"effusion": [1, 2]}')
    project.set(3, "boxes", "NA")
    manifest = project.run().manifest
    assert list(manifest.columns[:6]) == project.header
    assert manifest["boxes"].tolist()[:2] == ['{"effusion": [1, 2]}', "NA"]


def test_grades_are_numbers_and_empty_ones_missing(project):
    project.set(2, "kl_grade", "")
    project.set(3, "kl_grade", "3.0")
    grades = project.run().manifest["kl_grade"]
    assert str(grades.dtype) == "Int64"
    assert grades.isna().tolist()[:2] == [True, False]
    assert grades.iloc[1] == 3


def test_metrics_of_a_good_run(project):
    project.set(5, "impression", project.rows[0][1])
    metrics = project.run().metrics
    assert {key: metrics[key] for key in ("rows", "patients", "images", "errors", "warnings", "dropped")} == {
        "rows": 7,
        "patients": 7,
        "images": 7,
        "errors": 0,
        "warnings": 0,
        "dropped": 0,
    }
    assert metrics["splits"]["train"]["rows"] == 3
    assert metrics["splits"]["test"]["patients"] == 2
    assert metrics["splits"]["train"]["kl_grades"] == {"0": 1, "1": 1, "2": 1, "3": 0, "4": 0}
    assert metrics["texts"]["templated_share"] == 0.25


def test_all_errors_are_told_at_once_and_no_manifest_is_written(project, capsys):
    project.set(2, "split", "training")
    project.set(3, "impression", "  ")
    project.set(4, "kl_grade", "5")
    project.image(5).unlink()
    project.image(6).write_bytes(b"")
    outcome = project.run()
    assert sorted((issue["check"], issue["row"]) for issue in outcome.issues) == [
        ("bad_label", "4"),
        ("empty_text", "3"),
        ("missing_image", "5"),
        ("unknown_split", "2"),
        ("unreadable_image", "6"),
    ]
    assert "5 errors" in outcome.error
    assert outcome.metrics["errors"] == 5
    assert outcome.metrics["rows"] == 7
    assert not MANIFEST.exists()
    screen = capsys.readouterr().err
    assert "'training'; allowed: train, val, test" in screen
    assert "images/P003_left.png" in screen


def test_a_failed_run_leaves_no_older_manifest(project):
    project.run()
    project.set(2, "split", "training")
    project.run()
    assert not MANIFEST.exists()


def test_only_the_first_findings_are_on_the_screen(project, capsys):
    for _ in range(30):
        project.rows.append(["images/none.png", "Normal knee.", "train", "x", "0"])
    outcome = project.run()
    assert len(outcome.of("missing_image")) == 30
    screen = capsys.readouterr().err
    assert f"and {len(outcome.issues) - 20} more in reports/validation/issues.csv" in " ".join(screen.split())


def test_a_folder_that_is_not_there_is_named_once_for_all_its_images(project, capsys):
    for row in project.rows:
        row[0] = row[0].replace("images/", "image/left/")
    outcome = project.run()
    (folder,) = outcome.of("missing_folder")
    assert folder["message"] == "7 images lie in data/image, which does not exist; did you mean data/images?"
    assert len(outcome.of("missing_image")) == 7
    assert folder["message"] in " ".join(capsys.readouterr().err.split())


def test_a_name_that_no_folder_can_have_is_told_by_its_images(project):
    for row in project.rows:
        row[0] = row[0].replace("images/", f"{'x' * 300}/")
    outcome = project.run()
    assert not outcome.of("missing_folder")
    assert "File name too long" in outcome.of("unreadable_image")[0]["message"]


def test_a_disk_that_is_not_mounted_is_named(project, tmp_path):
    for row in project.rows:
        row[0] = str(tmp_path / "drive/knees" / row[0])
    message = f"7 images lie in {tmp_path / 'drive'}, which does not exist; {tmp_path} does"
    assert [issue["message"] for issue in project.run().of("missing_folder")] == [message]


def test_brackets_in_a_name_are_shown_as_they_are(project, capsys):
    project.set(2, "img_path", "images/[bold]knee.png")
    project.run()
    assert "images/[bold]knee.png" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["img_path", "impression", "split"])
def test_missing_column(project, column):
    project.header[project.header.index(column)] = column.upper()
    outcome = project.run()
    assert f"column '{column}' is missing" in only(outcome, "missing_column")["message"]
    assert outcome.metrics["errors"] == 1


def test_similar_column_is_suggested(project):
    project.header[1] = "impressions"
    assert "did you mean 'impressions'?" in only(project.run(), "missing_column")["message"]


def test_semicolons_are_recognised(project):
    splits = [row[project.header.index("split")] for row in project.rows]
    with Path("data/train.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([project.header, *project.rows])
    project.rows = []
    assert project.run().manifest["split"].tolist() == splits


def test_column_that_validation_makes_is_refused(project):
    project.header[4] = "image_id"
    assert "'image_id'" in only(project.run(), "reserved_column")["message"]


@pytest.mark.parametrize("content", [None, b"", b"img_path,impression,split\n\xff\xfe,a,b\n", b'a,b\n"open\n'])
def test_unreadable_csv_still_leaves_a_report(project, content):
    project.rows = []
    if content is not None:
        Path("data/train.csv").write_bytes(content)
    outcome = project.run()
    assert "data/train.csv" in only(outcome, "unreadable_csv")["message"]
    assert outcome.metrics["errors"] == 1
    assert outcome.metrics["rows"] == 0
    assert "data/train.csv" in outcome.error


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_is_needed(project, split):
    project.rows = [row for row in project.rows if row[2] != split]
    assert f"split '{split}'" in only(project.run(), "missing_split")["message"]


def test_cells_that_look_like_missing_values_stay_what_they_are(project):
    project.header.append("note")
    for row, note in zip(project.rows, ["NA", "None", *"abcde"], strict=True):
        row.append(note)
    assert project.run().manifest["note"].tolist()[:2] == ["NA", "None"]


def test_columns_named_as_the_facts_of_images_are_carried_through(project):
    project.header += ["mean", "kind"]
    for number, row in enumerate(project.rows):
        row += [f"{number}.50", "screening"]
    manifest = project.run().manifest
    assert manifest["mean"].tolist()[:2] == ["0.50", "1.50"]
    assert set(manifest["kind"]) == {"screening"}
    assert "fingerprint" not in manifest.columns


def test_empty_img_path(project):
    project.set(4, "img_path", "")
    assert only(project.run(), "missing_image")["row"] == "4"


def test_truncated_image(project):
    data = project.image(7).read_bytes()
    project.image(7).write_bytes(data[: len(data) // 2])
    issue = only(project.run(), "unreadable_image")
    assert (issue["row"], issue["file"]) == ("7", "images/P005_left.png")


def test_flat_image_is_kept_with_a_warning(project):
    Image.fromarray(np.full((9, 9), 100, dtype=np.uint8)).save(project.image(2))
    outcome = project.run()
    assert only(outcome, "constant_image", "warning")["row"] == "2"
    assert outcome.manifest["flags"].tolist()[:2] == ["constant_image", ""]


def test_nearly_flat_image_is_kept_with_a_warning(project):
    grey = np.array(Image.open(project.image(3)))
    Image.fromarray((100 + grey / 12).astype(np.uint8)).save(project.image(3))
    outcome = project.run()
    assert "nearly flat" in only(outcome, "flat_image", "warning")["message"]
    assert outcome.manifest["flags"].tolist()[:3] == ["", "flat_image", ""]


def test_dicom_with_a_doubtful_header_is_kept_with_a_warning(project, save_dicom):
    stored = np.array(Image.open(project.image(3))).astype(np.uint16) * 16
    shutil.copy(save_dicom(stored, PixelRepresentation=None), project.image(3))
    outcome = project.run()
    assert "PixelRepresentation" in only(outcome, "doubtful_elements", "warning")["message"]
    assert outcome.manifest["flags"].tolist()[:3] == ["", "doubtful_elements", ""]


def test_inverted_image_is_kept_with_a_warning(project):
    Image.fromarray(255 - np.array(Image.open(project.image(4)))).save(project.image(4))
    outcome = project.run()
    issue = only(outcome, "inverted_image", "warning")
    assert issue["row"] == "4"
    assert "preprocess.inversion: correct" in issue["message"]
    assert outcome.manifest["flags"].tolist()[:3] == ["", "", "inverted_image"]


def test_near_duplicate_in_another_split_is_found(project):
    rng = np.random.default_rng(1)
    knee = Image.fromarray(rng.integers(0, 256, (24, 24)).astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    knee.save(project.image(2))
    knee.resize((200, 200)).save(project.image(8))
    outcome = project.run()
    message = only(outcome, "near_duplicate_leak")["message"]
    assert "train (row 2)" in message
    assert "test (row 8)" in message
    kept = project.run(on_leak="drop")
    assert len(kept.manifest) == 6
    assert [issue["severity"] for issue in kept.issues] == ["dropped"]


@pytest.mark.parametrize(("written", "meant"), [("Train", "train"), ("validation", "val"), (" test ", "test")])
def test_split_in_other_words_names_ours(project, written, meant):
    project.set(3, "split", written)
    assert f"did you mean {meant!r}?" in only(project.run(), "unknown_split")["message"]


def test_a_file_name_is_no_formula_in_the_spreadsheet(project):
    project.set(2, "img_path", "=HYPERLINK(1)")
    assert project.run().of("missing_image")[0]["file"] == "'=HYPERLINK(1)"


def test_blanks_around_a_path_are_named(project):
    project.set(2, "img_path", " images/P000_left.png")
    assert "begins or ends with a blank" in project.run().of("missing_image")[0]["message"]


def test_no_check_hides_another_on_the_screen(project, capsys):
    for number in range(30):
        project.rows.append([f"images/none{number}.png", "Normal knee.", "train", "x", ""])
    project.set(3, "impression", "Dr. Anna Muster reported a small effusion.")
    project.run()
    screen = capsys.readouterr().err
    assert "personal_data" in screen
    assert "and 12 more" in " ".join(screen.split())


def test_the_page_repeats_no_personal_data(project):
    project.set(3, "impression", "Mr. John Muster, born 12/03/1956: severe OA of the left knee.")
    project.set(3, "kl_grade", "0")
    outcome = project.run()
    assert outcome.of("personal_data")
    assert outcome.of("grade_contradiction")
    page = write_validation_page(Path("reports/validation"), Path("data/train.csv"), KNEE).read_text()
    assert "hidden" in page
    assert "Muster" not in page
    assert "1956" not in page


def test_duplicated_row_is_kept_with_a_warning(project):
    project.rows.append(list(project.rows[0]))
    outcome = project.run()
    issue = only(outcome, "duplicate_row", "warning")
    assert issue["row"] == "9"
    assert "row 2" in issue["message"]
    assert len(outcome.manifest) == 8


def test_two_impressions_of_one_image_are_no_issue(project):
    project.rows.append([project.rows[0][0], "Another reader: no effusion.", "train", "000", "0"])
    assert project.run().issues == []


def test_patient_in_two_splits_stops_the_pipeline(project):
    project.set(8, "patient_id", "001")
    outcome = project.run()
    assert only(outcome, "patient_leak")["message"] == "patient 001 is in train (row 3) and test (row 8)"
    assert "1 error (1 patient_leak)" in outcome.error
    assert not MANIFEST.exists()


def test_copied_image_in_two_splits_stops_the_pipeline(project):
    shutil.copy(project.image(2), project.image(5))
    assert only(project.run(), "image_leak")["message"] == "the same image is in train (row 2) and val (row 5)"


def test_drop_takes_leaking_rows_out_of_the_manifest_and_lists_them(project):
    project.set(8, "patient_id", "001")
    shutil.copy(project.image(7), project.image(5))
    outcome = project.run(on_leak="drop")
    assert outcome.error == ""
    assert [(issue["severity"], issue["row"]) for issue in outcome.issues] == [
        ("dropped", "3"),
        ("dropped", "5"),
    ]
    assert len(outcome.manifest) == len(read_manifest()) == 5
    assert outcome.metrics["dropped"] == 2
    assert outcome.metrics["rows"] == 5


def test_drop_that_empties_a_split_is_an_error(project):
    for row in (2, 3, 4):
        project.set(row, "patient_id", "006")
    outcome = project.run(on_leak="drop")
    assert "'train'" in outcome.of("missing_split")[0]["message"]
    assert outcome.error


def test_warn_keeps_leaking_rows(project):
    project.set(8, "patient_id", "001")
    outcome = project.run(on_leak="warn")
    assert only(outcome, "patient_leak", "warning")
    assert len(outcome.manifest) == 7
    assert outcome.manifest["flags"].tolist() == ["", "patient_leak", "", "", "", "", "patient_leak"]


def test_pattern_finds_leaks_without_a_patient_column(project):
    index = project.header.index("patient_id")
    project.header.pop(index)
    for row in project.rows:
        row.pop(index)
    shutil.move(project.image(8), project.folder / "data/images/P001_right.png")
    project.set(8, "img_path", "images/P001_right.png")
    assert "patient P001" in only(project.run(patient_id_pattern=r"(P\d+)_"), "patient_leak")["message"]
    outcome = project.run()
    assert only(outcome, "unknown_patient", "warning")
    assert outcome.manifest["patient_id"].tolist() == [""] * 7


def test_images_outside_the_watched_folder_are_read_with_a_warning(project):
    outcome = project.run(images="elsewhere")
    message = only(outcome, "outside_images", "warning")["message"]
    assert "images outside data.images = elsewhere: 7" in message
    assert f"-S data.images={project.folder / 'data' / 'images'}" in message
    assert len(outcome.manifest) == 7


def test_images_of_two_disks_get_no_advice_to_watch_the_whole_machine():
    (issue,) = check_outside(["/mnt/one/a.png", "/srv/two/b.png"], "data/images")
    assert "data.images=/" not in issue.message
    assert "below one folder" in issue.message


def test_absolute_paths_stay_absolute(project):
    project.set(2, "img_path", str(project.image(2)))
    outcome = project.run()
    assert outcome.issues == []
    assert outcome.manifest["image_file"].iloc[0] == str(project.folder / "data/images/P000_left.png")
    assert outcome.manifest["image_file"].iloc[1] == "data/images/P001_left.png"


def test_with_auto_the_length_is_what_the_training_texts_need(project):
    project.set(2, "impression", "mild osteoarthritis " * 50)
    outcome = project.run(model={"max_text_length": "auto"})
    length = outcome.metrics["texts"]["max_text_length"]
    assert length == outcome.manifest["text_tokens"].max() + -outcome.manifest["text_tokens"].max() % 8 > 64
    assert outcome.of("truncated_text") == []
    project.set(7, "impression", "mild osteoarthritis " * 200)
    again = project.run(model={"max_text_length": "auto"})
    assert again.metrics["texts"]["max_text_length"] == length
    assert len(again.of("truncated_text")) == 1


def test_shards_inspect_every_image_once_and_the_whole_run_decodes_none(project, monkeypatch):
    """Two processes at once, as two machines would."""
    undisturbed = project.run().manifest
    shutil.rmtree(paths.store_root() / "facts")
    context = multiprocessing.get_context("fork")
    params = parse_params({"data": {"csv": "data/train.csv", "images": "data/images"}})
    shards = [
        context.Process(target=lambda number=number: os._exit(inspect_shard(params, Shard(number, 2))))
        for number in (1, 2)
    ]
    for shard in shards:
        shard.start()
    for shard in shards:
        shard.join(60)
    assert sum(shard.exitcode for shard in shards) == len(undisturbed)

    def describe(*_):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(inspection, "describe", describe)
    assert project.run().manifest.equals(undisturbed)
