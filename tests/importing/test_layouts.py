"""Downloads of public data sets, in miniature, each to a CSV that validation takes, by the command a user types."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from importing_layouts import MINIATURES, PATIENTS, chen_kl, gornale_kl, oai, vindr_cxr
from knee_siglip.params.files import parse_params
from knee_siglip.tables.table import read_table
from knee_siglip.validation.validate import validate

Run = Callable[..., tuple[int, str, str]]

EXPECTED: dict[str, dict[str, str]] = {
    "nih": {"impression": "Cardiomegaly, effusion.", "patient_id": "2", "view": "ap", "split": "train"},
    "mimic-cxr-jpg": {
        "impression": "Pleural effusion in study 1, otherwise unchanged.",
        "patient_id": "10000033",
        "study_id": "50414268",
        "view": "lateral",
    },
    "mimic-cxr": {"impression": "No pneumonia, 1.", "patient_id": "10000033", "study_id": "50414268"},
    "chexpert": {"impression": "Pleural effusion. Possible atelectasis.", "study_id": "patient00002/study1"},
    "chexpert-plus": {"impression": "1. Pleural Effusion number 1. 2. STABLE LINES.", "view": "ap"},
    "padchest": {"impression": "sin hallazg patolog num 1 .", "patient_id": "83986000001", "view": "pa"},
    "vindr-cxr": {"impression": "Atelectasis."},
    "mura": {"impression": "Normal radiograph of the wrist.", "study_id": "patient00001/WRIST/study1"},
    "iu-xray": {"impression": "No acute disease, number 1.", "study_id": "1", "view": "frontal"},
    "iu-xray-xml": {"impression": "Normal 1.", "study_id": "1"},
    "oai": {
        "impression": "Doubtful osteoarthritis of the right knee, KL grade 1. "
        "Mild osteoarthritis of the left knee, KL grade 2.",
        "patient_id": "9000100",
        "side": "both",
        "kl_grade": "",
        "kl_grade_right": "1",
        "kl_grade_left": "2",
    },
    "most": {"impression": "Moderate osteoarthritis of the right knee, KL grade 3.", "side": "right", "kl_grade": "3"},
    "chen-kl": {
        "impression": "Doubtful osteoarthritis of the left knee, KL grade 1.",
        "patient_id": "9003180",
        "side": "left",
        "kl_grade": "1",
        "split": "train",
    },
    "gornale-kl": {"impression": "Normal knee, KL grade 0.", "kl_grade": "0", "kl_grade_second_reader": "1"},
}
"""Cells of the row whose image's path holds the text below."""

ROW_OF = {
    **{"nih": "00000002_000", "mimic-cxr-jpg": "00000001-l", "mimic-cxr": "00000001-a", "chexpert": "patient00002/"},
    **{
        "chexpert-plus": "patient00001/",
        "padchest": "026-001",
        "vindr-cxr": "1.dicom",
        "mura": "train/XR_WRIST/patient00001",
    },
    **{"iu-xray": "/1_IM-0001-1001", "iu-xray-xml": "CXR1_", "oai": "9000100/", "most": "MB00001_1_R"},
    **{"chen-kl": "9003180L", "gornale-kl": "NormalG0 (1)"},
}

SHIPPED = {
    **dict.fromkeys(("nih", "vindr-cxr"), "train test"),
    **dict.fromkeys(("chexpert", "chexpert-plus", "mura"), "train val"),
    **dict.fromkeys(("padchest", "iu-xray", "iu-xray-xml", "oai", "most", "gornale-kl"), ""),
}
"""Splits that a set ships, where they are not all three."""


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_download_becomes_a_csv_that_validation_takes(
    name: str, tmp_path: Path, knee_siglip: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "download"
    MINIATURES[name](source)
    before = contents(source)
    code, printed, errors = knee_siglip("import", "download", "rows.csv")
    assert (code, errors) == (0, "")
    assert f"(layout: {name})" in printed
    shipped = set(read_table(Path("rows.csv")).get("split", pd.Series(dtype=str)))
    assert shipped == set(SHIPPED.get(name, "train val test").split())

    code, printed, errors = knee_siglip("import", "download", "rows.csv", "--split", "--overwrite")
    assert (code, errors) == (0, "")
    assert contents(source) == before
    table = read_table(Path("rows.csv"))
    row = table[table["img_path"].str.contains(ROW_OF[name], regex=False)].iloc[0]
    assert {column: row[column] for column in EXPECTED[name]} == EXPECTED[name]
    assert table["img_path"].is_unique
    assert len(table) >= PATIENTS - 1

    params = parse_params({"data": {"csv": "rows.csv", "images": "download"}})
    manifest = validate(params, Path("manifest.parquet"), Path("validation"), Path("none"))
    assert len(manifest) == len(table)
    assert manifest["split"].value_counts().min() >= 2


def test_official_test_rows_never_move(tmp_path: Path, knee_siglip: Run) -> None:
    MINIATURES["nih"](tmp_path / "nih")
    knee_siglip("import", tmp_path / "nih", tmp_path / "rows.csv", "--split")
    table = read_table(tmp_path / "rows.csv")
    listed = set((tmp_path / "nih/test_list.txt").read_text().split())
    assert set(table.loc[table["split"] == "test", "Image Index"]) == listed
    patients = table.groupby("split")["patient_id"].agg(set)
    assert not patients["val"] & (patients["train"] | patients["test"])


def test_three_readers_vote(tmp_path: Path, knee_siglip: Run) -> None:
    vindr_cxr(tmp_path / "vindr")
    knee_siglip("import", tmp_path / "vindr", tmp_path / "rows.csv")
    table = read_table(tmp_path / "rows.csv")
    row = table[table["source_image_id"] == f"{0:032x}"].iloc[0]
    assert (row["Aortic enlargement"], row["No finding"], row["rad_id"]) == ("1", "0", "R0; R1; R2")
    assert "more than half" in (tmp_path / "rows.import.md").read_text()


def test_another_sets_labels_are_no_healthy_images(tmp_path: Path, knee_siglip: Run) -> None:
    """VinDr-PCXR names its tables like VinDr-CXR and has other labels: an image with bronchitis read `No finding.`"""
    from importing_layouts import picture, write_text

    write_text(tmp_path / "set/image_labels_train.csv", "image_id,rad_ID,No finding,Bronchitis,Pneumonia\na,R1,0,1,0\n")
    picture(tmp_path / "set/train/a.png")
    code, _, error = knee_siglip("import", tmp_path / "set", tmp_path / "rows.csv")
    assert (code, "of the 29 labels of the layout vindr-cxr only 2 are columns" in error) == (1, True), error


def test_the_reading_of_project_15_counts(tmp_path: Path, knee_siglip: Run) -> None:
    oai(tmp_path / "oai")
    knee_siglip("import", tmp_path / "oai", tmp_path / "rows.csv")
    row = read_table(tmp_path / "rows.csv").iloc[0]
    assert (row["patient_id"], row["kl_grade_right"], row["READPRJ"]) == ("9000099", "0", "15")


def test_a_film_without_a_visit_is_not_guessed(tmp_path: Path, knee_siglip: Run) -> None:
    from importing_layouts import picture, write_text

    for visit, grade in (("00", 1), ("01", 3)):
        header = f"ID|SIDE|READPRJ|V{visit}XRKL|V{visit}BARCDBU"
        write_text(tmp_path / f"oai/kxr_sq_bu{visit}.txt", f"{header}\n9000099|1|15|{grade}|016600158703\n")
    for name in ("9000099R.png", "9000099_00m_R.png"):
        picture(tmp_path / "oai/crops" / name)
    knee_siglip("import", tmp_path / "oai", tmp_path / "rows.csv")
    table = read_table(tmp_path / "rows.csv")
    assert table[["img_path", "kl_grade"]].values.tolist() == [["oai/crops/9000099_00m_R.png", "1"]]
    assert "its name tells none" not in (tmp_path / "rows.dropped.csv").read_text()
    assert "readings of several visits fit" in (tmp_path / "rows.dropped.csv").read_text()


def test_what_a_download_holds_twice_is_left_out_with_the_reason(tmp_path: Path, knee_siglip: Run) -> None:
    chen_kl(tmp_path / "chen")
    knee_siglip("import", tmp_path / "chen", tmp_path / "rows.csv")
    told = json.loads((tmp_path / "rows.import.json").read_text())
    assert told["dropped"]["the knees of test, cropped by a detector"] == 1
    assert told["rows"] == 2 * PATIENTS
    code, printed, _ = knee_siglip("import", tmp_path / "chen/KneeXrayData/ClsKLData/kneeKL299", tmp_path / "large.csv")
    assert (code, "nothing left out" in printed) == (0, True)


def test_the_second_readers_copies_are_no_rows(tmp_path: Path, knee_siglip: Run) -> None:
    gornale_kl(tmp_path / "gornale")
    knee_siglip("import", tmp_path / "gornale", tmp_path / "rows.csv")
    assert len(read_table(tmp_path / "rows.csv")) == PATIENTS
