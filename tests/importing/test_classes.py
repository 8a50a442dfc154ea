"""Folders of classes: the class is the label, and the impression says no more than it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from importing_layouts import picture

Run = Callable[..., tuple[int, str, str]]
Import = Callable[..., pd.DataFrame]


@pytest.mark.parametrize(
    "folders",
    [["0", "1", "4"], ["KL0", "KL1", "KL4"], ["0Normal", "1Doubtful", "4Severe"], ["Normal", "Doubtful", "Severe"]],
)
def test_folders_of_grades(folders: list[str], tmp_path: Path, run_import: Import) -> None:
    for folder in folders:
        for split in ("train", "valid", "test"):
            picture(tmp_path / "knees" / split / folder / f"{split}_1.png")
    table = run_import(tmp_path / "knees").set_index("img_path")
    row = table.loc[f"knees/valid/{folders[2]}/valid_1.png"]
    assert row[["impression", "split", "kl_grade"]].tolist() == [
        "Severe osteoarthritis of the knee, KL grade 4.",
        "val",
        "4",
    ]
    assert table.loc[f"knees/test/{folders[0]}/test_1.png", "impression"] == "Normal knee, KL grade 0."


def test_names_of_a_number_and_a_side_keep_both_knees_of_a_patient_together(tmp_path: Path, run_import: Import) -> None:
    for patient in range(20, 32):
        for side in ("left", "right"):
            picture(tmp_path / f"knees/{patient % 2}/{patient}_{side}.png")
    table = run_import(tmp_path / "knees", "--split")
    assert table.groupby("patient_id")["split"].nunique().eq(1).all()
    assert table["patient_id"].nunique() == 12
    assert set(table.loc[table["kl_grade"] == "1", "impression"]) == {
        f"Doubtful osteoarthritis of the {side} knee, KL grade 1." for side in ("left", "right")
    }


def test_folders_of_diagnoses(tmp_path: Path, run_import: Import) -> None:
    for folder in ("normal", "osteopenia", "old_fracture"):
        picture(tmp_path / "knees" / folder / f"{folder}_1.jpg")
    table = run_import(tmp_path / "knees")
    assert table["impression"].tolist() == ["Normal.", "Old fracture.", "Osteopenia."]
    assert "kl_grade" not in table
    assert "split" not in table
    table = run_import(tmp_path / "knees", "--template", "{class} of the knee.")
    assert table["impression"][4] == "osteopenia of the knee."


def test_a_folder_that_is_none_of_these_is_told(tmp_path: Path, knee_siglip: Run) -> None:
    picture(tmp_path / "knees/images/a.png")
    code, _, error = knee_siglip("import", tmp_path / "knees", tmp_path / "rows.csv")
    assert (code, "holds 1 images in 1 folders such as images, and no table" in error) == (1, True)
    code, _, error = knee_siglip("import", tmp_path / "none", tmp_path / "rows.csv")
    assert (code, "does not exist" in error) == (2, True)
