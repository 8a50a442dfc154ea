"""A stage does not start on what a disk has changed behind DVC's back."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.core.inputs import check_inputs_undamaged


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stage `train` reads a file and a folder that others wrote; dvc.lock as DVC 3 writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    (tmp_path / "encoders/vision").mkdir(parents=True)
    files = {"encoders/a.txt": b"a", "encoders/vision/b.bin": b"\0b", "manifest.parquet": b"rows", "model.pt": b"old"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    tree = [{"md5": md5(b"a"), "relpath": "a.txt"}, {"md5": md5(b"\0b"), "relpath": "vision/b.bin"}]
    folder = md5(json.dumps(tree).encode()) + ".dir"
    outs = {"backbones": ("encoders", folder), "validate": ("manifest.parquet", md5(b"rows"))}
    stages: dict[str, object] = {
        name: {"outs": [{"path": path, "hash": "md5", "md5": value}]} for name, (path, value) in outs.items()
    }
    stages["train"] = {
        "deps": [{"path": "manifest.parquet"}, {"path": "encoders/vision"}, {"path": "train.py"}],
        "outs": [{"path": "model.pt", "hash": "md5", "md5": md5(b"of the last run")}],
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    return tmp_path


def flip(file: Path) -> None:
    """A bit, with the file's times kept: DVC itself sees nothing."""
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_the_stages_before_wrote_is_taken(project: Path) -> None:
    check_inputs_undamaged()


@pytest.mark.parametrize(
    ("file", "named"),
    [("manifest.parquet", "manifest.parquet is not what the stage validate"), ("encoders/vision/b.bin", "encoders is")],
)
def test_a_flipped_bit_is_named_with_the_way_out(project: Path, file: str, named: str) -> None:
    flip(project / file)
    with pytest.raises(UserError, match=rf"{named}.*dvc checkout"):
        check_inputs_undamaged()


def test_what_the_stage_does_not_read_is_not_hashed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(project / "encoders/a.txt")
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    check_inputs_undamaged()
    monkeypatch.delenv("DVC_STAGE")
    check_inputs_undamaged()


def test_what_an_orphan_left_unfinished_in_the_outs_goes_and_other_work_stays(project: Path) -> None:
    (project / "model.pt.0123456789ab.partial").write_bytes(b"half")
    (project / "live/plots.0123456789ab.partial").mkdir(parents=True)
    (project / "results.csv.partial").mkdir()
    lock = json.loads((project / "dvc.lock").read_text())
    lock["stages"]["train"]["outs"] += [{"path": "live", "hash": "md5", "md5": "x"}, {"path": "results.csv"}]
    (project / "dvc.lock").write_text(json.dumps(lock))
    check_inputs_undamaged()
    left = {path.name for path in project.rglob("*")}
    assert not {"model.pt.0123456789ab.partial", "plots.0123456789ab.partial"} & left
    assert "results.csv.partial" in left


def test_a_missing_input_is_left_to_the_stage(project: Path) -> None:
    (project / "manifest.parquet").unlink()
    check_inputs_undamaged()


def test_an_unreadable_lock_is_left_to_dvc(project: Path) -> None:
    flip(project / "manifest.parquet")
    (project / "dvc.lock").write_text("stages: [")
    check_inputs_undamaged()
