import errno
import os

import pandas as pd
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.tables.manifest import number_groups, read_manifest, write_manifest


@pytest.fixture
def manifest() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "img_path": ["b.png", "a.png"],
            "impression": ["NA", "None"],
            "split": ["train", "test"],
            "patient_id": ["007", ""],
            "kl_grade": pd.array([3, None], dtype="Int64"),
            "image_file": ["images/b.png", "images/a.png"],
            "image_id": ["f" * 64, "0" * 64],
            "width": [10, 20],
            "height": [30, 40],
            "bits": [8, 16],
            "text": ["na", "none"],
            "flags": ["", "constant_image"],
        }
    )
    return table.set_index(pd.Index([2, 5], name="row"))


def test_round_trip_keeps_order_text_and_missing_grades(manifest, tmp_path):
    write_manifest(manifest, tmp_path / "new" / "manifest.parquet")
    read = read_manifest(tmp_path / "new" / "manifest.parquet")
    pd.testing.assert_frame_equal(read, manifest.reset_index(drop=True))
    assert read["patient_id"].tolist() == ["007", ""]
    assert read["impression"].tolist() == ["NA", "None"]
    assert str(read["kl_grade"].dtype) == "Int64"


def test_same_content_same_bytes(manifest, tmp_path):
    write_manifest(manifest, tmp_path / "a.parquet")
    write_manifest(manifest.copy(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_missing_manifest_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro validate"):
        read_manifest(tmp_path / "manifest.parquet")


def test_another_file_is_no_manifest(tmp_path, manifest):
    (tmp_path / "text.parquet").write_text("not parquet")
    manifest[["img_path", "split"]].to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"is damaged or no such table .*; remove it, then run dvc repro"):
        read_manifest(tmp_path / "text.parquet")
    with pytest.raises(UserError, match="lacks image_file"):
        read_manifest(tmp_path / "other.parquet")


def test_a_disk_that_refuses_is_not_taken_for_a_damaged_file(tmp_path, manifest, monkeypatch):
    write_manifest(manifest, tmp_path / "manifest.parquet")

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(pd, "read_parquet", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        read_manifest(tmp_path / "manifest.parquet")


def test_rows_without_a_patient_are_groups_of_their_own():
    table = pd.DataFrame({"patient_id": ["a", "", "b", "a", None]})
    assert number_groups(table, "patient_id").tolist() == [0, 1, 2, 0, 3]
    assert number_groups(table, "study_id").tolist() == [0, 1, 2, 3, 4]
    table = pd.DataFrame({"patient_id": ["1", ""]})  # an id that looks like a row number is none
    assert number_groups(table, "patient_id").tolist() == [0, 1]
