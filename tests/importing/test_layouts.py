"""Downloads of public data sets, in miniature, each by the commands a user types to a trained and evaluated model.

As typed: `knee-siglip import`, with and without `--split`, and the params that it prints for the next command. Not as
typed: the stages run in this process in place of `dvc exp run`, with one prepared pair of encoders for all layouts, an
image size of 28, two steps, no trackers and the shortest evaluation. One layout's commands are typed exactly in
tests/pipeline/test_through_dvc.py, those of all in benchmarks/layouts.py.
"""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from importing_layouts import MINIATURES, PATIENTS, chen_kl, gornale_kl, oai, vindr_cxr
from knee_siglip.encoders import backbones
from knee_siglip.params.sections import ModelParams
from knee_siglip.tables.table import read_table
from stages_in_process import ROOT, run_stages

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

KNEES = ("oai", "most", "chen-kl", "gornale-kl")
OTHER_JOINTS = ("mura",)
"""Sets for which no task ships; all that are in neither tuple are chests."""

SHORTEST = {
    "image_size": 28,
    "train": {"steps": 2, "batch_size": 8},
    "evaluate": {"grounding": {"images": 0}, "gallery": 1, "robustness": False},
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage `backbones` writes with the default params."""
    folder = tmp_path_factory.mktemp("encoders") / "backbones"
    backbones.write_backbones(ModelParams(), folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", MINIATURES)
def test_a_download_becomes_an_evaluated_model(
    name: str, tmp_path: Path, knee_siglip: Run, monkeypatch: pytest.MonkeyPatch, encoders: Path
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

    params = params_of_the_next_command(printed)
    assert params.get("task") == (None if name in (*KNEES, *OTHER_JOINTS) else "tasks/chest.yaml")
    monkeypatch.setattr(backbones, "write_backbones", lambda _, folder: shutil.copytree(encoders, folder))
    metrics = run_stages(tmp_path / "run", _with_params(params))
    assert_every_row_arrived(tmp_path / "run", table, metrics)


def params_of_the_next_command(printed: str) -> dict[str, str]:
    """What `-S` sets in the command that the import prints last."""
    words = shlex.split(printed.rpartition("Next: dvc exp run ")[2])
    return dict(word.split("=", 1) for word in words if word != "-S")


def _with_params(named: dict[str, str]) -> dict[str, Any]:
    data = {name.removeprefix("data."): value for name, value in named.items() if name.startswith("data.")}
    return SHORTEST | {"data": data} | ({"task": str(ROOT / named["task"])} if "task" in named else {})


def assert_every_row_arrived(run: Path, table: pd.DataFrame, metrics: dict[str, Any]) -> None:
    """Each row of the CSV, and each study, in every stage's files; grades where the layout has them."""
    manifest = pd.read_parquet(run / "manifest.parquet")
    assert manifest["img_path"].tolist() == table["img_path"].tolist()
    assert manifest["split"].value_counts().min() >= 2
    tested = table[table["split"] == "test"]
    results = pd.read_csv(run / "results.csv", dtype=str, keep_default_na=False)
    assert results["img_path"].tolist() == tested["img_path"].tolist()
    assert set(results["status"]) == {"ok"}
    assert metrics["rows"] == len(tested)
    if "study_id" in table:
        assert manifest.groupby("study_id")["text"].nunique().eq(1).all()
        studies = pd.read_csv(run / "studies.csv", dtype=str)
        images = tested.groupby("study_id", sort=False).size()
        assert studies["study_id"].tolist() == images.index.tolist()
        if images.max() > 1:  # else a study is its image, and the evaluation measures nothing twice
            assert pd.read_parquet(run / "evaluation/studies.parquet")["images"].tolist() == images.tolist()
    graded = int((tested.get("kl_grade", pd.Series("", tested.index)) != "").sum())
    assert metrics["graded_rows"] == graded
    assert ("zero_shot_kl" in metrics) == (graded > 0)
    assert (run / "evaluation/index.html").stat().st_size > 10_000


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
