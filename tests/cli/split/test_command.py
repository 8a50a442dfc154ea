"""`knee-siglip split`: what is written, what is refused, and that validation finds no leak in it."""

import csv
import io
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from knee_siglip.cli.main import main
from knee_siglip.cli.split.command import split
from knee_siglip.core import running
from knee_siglip.params.files import parse_params
from knee_siglip.tables.table import read_table
from knee_siglip.validation.validate import validate

HEADER = ["img_path", "impression", "patient_id", "kl_grade"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_split(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; returns exit code, stdout and stderr with warnings."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(split)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["split", *map(str, arguments)])
        try:
            running.run_stage(app)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def knees(tmp_path: Path) -> Path:
    """A CSV of 30 patients with two images each, and no split."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        name = f"images/P{number // 2:03d}_{'LR'[number % 2]}.png"
        Image.fromarray(rng.integers(0, 256, (12, 10)).astype(np.uint8)).save(folder / name)
        rows.append([name, f"Moderate OA, number {number}.", f"{number // 2:03d}", str(number % 5)])
    return _write_rows(folder / "knees.csv", [HEADER, *rows])


def _write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_rows_cells_and_order_are_kept(run_split: Run, knees: Path) -> None:
    out = knees.with_name("train.csv")
    code, printed, _ = run_split(knees, out)
    assert code == 0
    before, after = read_table(knees), read_table(out)
    assert after.drop(columns="split").equals(before)
    assert after["split"].value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.04)
    assert after.groupby("patient_id")["split"].nunique().max() == 1
    for word in ("train", "val", "test", "patients", "kl_grade"):
        assert word in printed


def test_odd_cells_survive(run_split: Run, knees: Path) -> None:
    odd = ["007", "NA", " spaced ", 'a "quote"', "a,b", "line\nbreak", "carriage\rreturn", "crlf\r\nend", "Ünï—½", ""]
    rows = [[*row, odd[number % len(odd)]] for number, row in enumerate(read_table(knees).to_numpy().tolist())]
    path = _write_rows(knees, [[*HEADER, "odd, column"], *rows])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run_split(path, knees.with_name("out.csv"))[0] == 0
    after = read_table(knees.with_name("out.csv"))
    assert after["odd, column"].tolist() == [row[-1] for row in rows]
    assert not knees.with_name("out.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_images_are_found_from_another_folder(run_split: Run, knees: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "deep" / "train.csv"
    assert run_split(knees, out)[0] == 2
    assert not out.parent.exists()
    out.parent.mkdir(parents=True)
    assert run_split(knees, out)[0] == 0
    paths = read_table(out)["img_path"].tolist()
    assert paths[0] == "../../data/images/P000_L.png"
    assert all((out.parent / path).is_file() for path in paths)


def test_absolute_paths_stay_and_a_linked_folder_gets_absolute_ones(
    run_split: Run, knees: Path, tmp_path: Path
) -> None:
    table = read_table(knees)
    absolute = str(knees.parent / table["img_path"].iloc[0])
    _write_rows(knees, [HEADER, [absolute, *table.iloc[0, 1:]], *table.iloc[1:].to_numpy().tolist()])
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    assert run_split(knees, tmp_path / "link" / "train.csv")[0] == 0
    paths = read_table(tmp_path / "link" / "train.csv")["img_path"].tolist()
    assert paths[0] == absolute
    assert all((tmp_path / "link" / path).is_file() for path in paths)


def test_a_split_that_is_there_is_left_alone(run_split: Run, knees: Path) -> None:
    out = knees.with_name("train.csv")
    again = knees.with_name("again.csv")
    assert run_split(knees, out)[0] == 0
    code, _, said = run_split(out, again)
    assert code == 2
    assert "has a split in 60 of 60 rows, the first in row 2" in said
    assert "--overwrite_split" in said
    assert not again.exists()
    assert run_split(out, again, "--overwrite_split", "--seed", "1")[0] == 0
    assert list(read_table(again).columns) == list(read_table(out).columns)
    assert not read_table(again)["split"].equals(read_table(out)["split"])


def test_an_empty_split_column_is_filled_in_its_place(run_split: Run, knees: Path) -> None:
    rows = [[" ", *row] for row in read_table(knees).to_numpy().tolist()]
    path = _write_rows(knees, [["split", *HEADER], *rows])
    assert run_split(path, knees.with_name("out.csv"))[0] == 0
    after = read_table(knees.with_name("out.csv"))
    assert list(after.columns) == ["split", *HEADER]
    assert set(after["split"]) == {"train", "val", "test"}


def test_no_file_is_overwritten_unasked(run_split: Run, knees: Path) -> None:
    out = knees.with_name("train.csv")
    out.write_text("precious")
    before = knees.read_bytes()
    code, _, said = run_split(knees, out)
    assert (code, out.read_text()) == (2, "precious")
    assert "--force" in said
    assert run_split(knees, knees, "--force")[0] == 2
    assert knees.read_bytes() == before
    assert run_split(knees, out, "--force")[0] == 0
    assert len(read_table(out)) == 60


def test_a_failed_write_leaves_nothing(run_split: Run, knees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    names = sorted(path.name for path in knees.parent.iterdir())
    code, _, said = run_split(knees, knees.with_name("out.csv"))
    assert code == 1
    assert "No space left on device" in said
    assert sorted(path.name for path in knees.parent.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stratify", "grade"], "--stratify grade: "),
        (["--val", "0.9", "--test", "0.2"], "train gets the rest"),
        (["--patient_id_pattern", "("], "is no regular expression"),
    ],
)
def test_wrong_options_are_refused(run_split: Run, knees: Path, arguments: list[str], said: str) -> None:
    code, _, printed = run_split(knees, knees.with_name("out.csv"), *arguments)
    assert code == 2
    assert said in printed
    assert not knees.with_name("out.csv").exists()


def test_wrong_inputs_are_refused(run_split: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    code, _, said = run_split(tmp_path / "missing.csv", out)
    assert (code, "missing.csv is no file" in said) == (2, True)
    code, _, said = run_split(_write_rows(tmp_path / "a.csv", [["path", "text"], ["x", "y"]]), out)
    assert (code, "has no column img_path; its columns are path, text" in said) == (2, True)
    code, _, said = run_split(_write_rows(tmp_path / "b.csv", [["img_path"]]), out)
    assert (code, "has no rows" in said) == (2, True)
    code, _, said = run_split(_write_rows(tmp_path / "c.csv", [["img_path"], ["a.png"], ["b.png"]]), out)
    assert (code, "2 independent groups" in said) == (1, True)


def test_what_could_not_be_checked_is_said(run_split: Run, knees: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [[row[0], row[1]] for row in read_table(knees).to_numpy().tolist()]
    (knees.parent / rows[4][0]).unlink()
    path = _write_rows(knees, [HEADER[:2], *rows])
    assert run_split(path, knees.with_name("out.csv"))[0] == 0
    said = " | ".join(record.getMessage() for record in caplog.records)
    assert "60 of 60 rows have no patient" in said
    assert "1 of 60 images cannot be read" in said
    assert "there is no column kl_grade" in said


def test_the_patients_of_a_pattern_are_written_down(run_split: Run, knees: Path) -> None:
    rows = [[row[0], row[1]] for row in read_table(knees).to_numpy().tolist()]
    path = _write_rows(knees, [HEADER[:2], *rows])
    out = knees.parent.parent / "out.csv"
    code, printed, _ = run_split(path, out, "--patient_id_pattern", r"^images/(P\d+)_")
    assert code == 0
    assert "column patient_id" in printed
    table = read_table(out)
    assert table["patient_id"].tolist() == [path.split("/")[-1][:4] for path in table["img_path"]]
    assert table.groupby(table["img_path"].str[-10:-6])["split"].nunique().max() == 1


def test_validation_finds_no_leak_afterwards(
    run_split: Run, knees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random tables: patients spelt in several ways, and images copied between patients."""
    monkeypatch.chdir(tmp_path)
    table = read_table(knees)
    for seed in range(2):
        rng = random.Random(seed)
        rows = table.to_numpy().tolist()
        for number in range(8):
            name = f"images/copy{seed}_{number}.png"
            source = rng.choice(rows[:60])
            (knees.parent / name).write_bytes((knees.parent / source[0]).read_bytes())
            rows.append([name, f"A copy, number {number}.", f"C{number}", "1"])
        for row in rng.sample(rows[:60], 20):
            row[2] = rng.choice([f" {row[2]}", row[2].lstrip("0") or "0", f"{row[2]} "])
        path, out = knees.with_name("random.csv"), tmp_path / "out" / f"{seed}.csv"
        out.parent.mkdir(exist_ok=True)
        _write_rows(path, [HEADER, *rows])
        assert run_split(path, out, "--seed", str(seed))[0] == 0
        params = parse_params({"data": {"csv": str(out.relative_to(tmp_path)), "images": "data/images"}})
        assert len(validate(params)) == 68


def test_folders_of_undecodable_names_need_no_traceback(
    monkeypatch: pytest.MonkeyPatch, knees: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(knees.parent, odd)
    results = []
    for target in (odd / "out.csv", tmp_path / "elsewhere.csv"):
        printed, told = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        monkeypatch.setattr(sys, "stdout", printed)
        monkeypatch.setattr(sys, "stderr", told)
        monkeypatch.setattr(sys, "argv", ["knee-siglip", "split", str(odd / knees.name), str(target)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed.flush()
        results.append((ended.value.code, printed.buffer.getvalue().decode(), told.getvalue()))
    assert results[0][0] in (0, None)
    assert r"caf\udce9" in "".join(results[0][1].split())
    assert results[1][0] == 2
    assert "no Unicode text" in results[1][2]
