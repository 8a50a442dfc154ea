"""The written sample: reproducible to the byte, split by patient, complete."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.evaluation.groups.subgroups import FEWEST_ROWS
from knee_siglip.params.sections import SampleParams
from knee_siglip.sample.dataset import LATERAL_SHARE, assign_splits, iter_cases, label_table, write_sample
from knee_siglip.sample.radiograph import draw_knee

COLUMNS = [
    *("img_path", "impression", "split", "patient_id", "study_id", "side", "view", "kl_grade", "findings"),
    "text_alternatives",
]
PATIENTS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, patients=PATIENTS, seed=42, size=512, workers=1)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_whatever_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, patients=PATIENTS, seed=42, size=512, workers=2)
    assert _bytes(tmp_path) == _bytes(folder)


def test_another_seed_gives_other_knees(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, patients=2, seed=43, size=512, workers=1)
    image = "images/P00001_L.png"
    assert (tmp_path / image).read_bytes() != (folder / image).read_bytes()


def test_table_has_the_columns_of_the_format(folder: Path) -> None:
    table = pd.read_csv(folder / "train.csv")
    assert list(table.columns) == COLUMNS
    assert (table["view"] == "ap").sum() == 2 * PATIENTS
    assert b"\r" not in (folder / "train.csv").read_bytes()
    assert not table["impression"].isna().any()


def test_views_of_a_study_are_one_knee_with_one_text(folder: Path) -> None:
    table = pd.read_csv(folder / "train.csv")
    shared = ["impression", "split", "patient_id", "side", "kl_grade", "text_alternatives"]
    assert (table.groupby("study_id")[shared].nunique() <= 1).all(axis=None)
    assert set(table.groupby("study_id")["view"].agg("+".join)) == {"ap", "ap+lateral"}
    assert table["study_id"].nunique() == 2 * PATIENTS


def test_the_frontal_picture_does_not_depend_on_the_lateral_one(folder: Path) -> None:
    for case in iter_cases(2, 42):
        if case.view == "ap":
            grey, _ = draw_knee(case.rng, case.labels, 512)
            with Image.open(folder / case.img_path) as image:
                assert np.array_equal(np.asarray(image), grey)


def test_default_sample_has_laterals_enough_to_report_in_the_test_split() -> None:
    params = SampleParams()
    table = label_table(patients=params.patients, seed=params.seed)
    counts = table[table["view"] == "lateral"].groupby("split").size()
    assert counts["test"] >= FEWEST_ROWS
    assert counts.sum() / table["study_id"].nunique() == pytest.approx(LATERAL_SHARE, abs=0.03)


def test_every_row_has_its_image_and_every_image_its_row(folder: Path) -> None:
    table = pd.read_csv(folder / "train.csv")
    assert {f"images/{path.name}" for path in (folder / "images").iterdir()} == set(table["img_path"])
    with Image.open(folder / table["img_path"].iloc[0]) as image:
        assert (image.mode, image.size) == ("L", (512, 512))


def test_grades_are_whole_numbers_and_empty_only_after_arthroplasty(folder: Path) -> None:
    table = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    assert set(table["kl_grade"]) <= {"", "0", "1", "2", "3", "4"}
    assert ((table["kl_grade"] == "") == table["impression"].str.contains("arthroplasty")).all()


def test_boxes_lie_inside_the_image(folder: Path) -> None:
    boxes = [f["box"] for row in pd.read_csv(folder / "train.csv")["findings"] for f in json.loads(row)]
    assert boxes
    corners = np.array(boxes)
    assert corners.min() >= 0
    assert corners.max() <= 1
    assert (corners[:, :2] < corners[:, 2:]).all()


def test_writing_again_leaves_nothing_of_the_old_sample(tmp_path: Path) -> None:
    write_sample(tmp_path, patients=3, seed=1, size=512, workers=1)
    write_sample(tmp_path, patients=2, seed=1, size=512, workers=1)
    assert {path.name[:6] for path in (tmp_path / "images").iterdir()} == {"P00001", "P00002"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "train.csv"]


def test_patients_are_split_75_10_15_and_differently_by_seed() -> None:
    splits = assign_splits(1000, 42)
    counts = pd.Series(splits).value_counts()
    assert dict(counts) == {"train": 750, "test": 150, "val": 100}
    assert assign_splits(1000, 42) == splits
    assert assign_splits(1000, 43) != splits
