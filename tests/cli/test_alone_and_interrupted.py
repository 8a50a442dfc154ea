"""Every command: Ctrl-C is one sentence and leaves nothing half-written; two never write the same thing at once."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from knee_siglip.cli.main import app
from knee_siglip.core.files import lock, sole_writer

Run = Callable[..., tuple[int, str, str]]

MAP = ("map", "--model_path", "m.pt", "--image_path", "a.png", "--phrase", "effusion")
BATCH = ("infer", "--model_path", "m.pt", "--csv_path", "in.csv", "--output_path", "out.csv")
COMPARE = ("compare", "a.parquet", "b.parquet", "--csv", "out.csv")

INSIDE = {
    ("infer", "--model_path", "m.pt", "--image_path", "a.png"): "knee_siglip.cli.main._load",
    BATCH: "knee_siglip.cli.main._load",
    ("train", "--data_path", "in.csv", "--output_dir", "out"): "knee_siglip.cli.train.prepare",
    ("doctor",): "knee_siglip.cli.doctor.examine",
    ("import", "in.csv", "out.csv"): "knee_siglip.importing.importer.import_data",
    ("split", "in.csv", "out.csv", "--overwrite_split"): "knee_siglip.cli.split.assignment.split_table",
    COMPARE: "pandas.DataFrame.to_csv",
    ("release", "main"): "knee_siglip.cli.release.command.load_params",
    ("sync",): "knee_siglip.cli.sync.deliver",
    MAP: "knee_siglip.serve.model.load",
    ("store", "show"): "knee_siglip.cli.store.care.list_stored",
    ("store", "prune"): "knee_siglip.cli.store.care.list_stored",
    ("store", "verify"): "knee_siglip.cli.store.care.list_stored",
    ("store", "pack", "out.tar"): "knee_siglip.cli.store.travel.read_cache_facts",
    ("store", "unpack", "in.tar"): "knee_siglip.cli.store.travel._header",
}
"""Arguments of each command, and a function that it calls while it works."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table, as the current one and as DVC's."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "in.csv").write_text("img_path,impression,split\n" + "a.png,Normal knee.,train\n" * 4)
    (work / "in.tar").write_bytes(b"")
    (work / "params.yaml").write_text("tracking: {mlflow: none, wandb: none}\n")
    monkeypatch.chdir(work)
    monkeypatch.setenv("DVC_ROOT", str(work))
    return work


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_every_command_is_here() -> None:
    commands: Any = get_command(app)
    names = {(name,) for name in commands.commands if name != "store"}
    names |= {("store", name) for name in commands.commands["store"].commands}
    assert {args[: 2 if args[0] == "store" else 1] for args in INSIDE} == names


@pytest.mark.parametrize("command", INSIDE, ids=" ".join)
def test_ctrl_c_is_a_sentence_and_leaves_nothing(
    command: tuple[str, ...], knee_siglip: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(folder)
    monkeypatch.setattr("tarfile.open", lambda *_, **__: nullcontext())
    monkeypatch.setattr("knee_siglip.cli.compare.command.rows_of_split", lambda *_: None)
    monkeypatch.setattr("knee_siglip.cli.compare.comparison.compare", lambda *_: [])
    monkeypatch.setattr(INSIDE[command], interrupt)
    code, _, told = knee_siglip(*command)
    assert code == 130
    assert [line for line in told.splitlines() if line.startswith("error: ")] == [
        "error: interrupted; no file is half-written, so run the same command again"
    ]
    assert "Traceback" not in told
    assert files_in(folder) == before


def test_ctrl_c_before_a_command_begins_is_a_sentence_too(knee_siglip: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.core.TyperGroup.make_context", interrupt)
    code, _, told = knee_siglip("doctor")
    assert (code, told) == (130, "error: interrupted; no file is half-written, so run the same command again\n")


def held(store: Path) -> dict[tuple[str, ...], Callable[[], AbstractContextManager[None]]]:
    """What another process holds that runs this command."""
    out = Path("out.csv")
    return {
        BATCH: lambda: sole_writer(Path("out_embeddings.npy")),
        COMPARE: lambda: sole_writer(out),
        ("import", "in.csv", "out.csv", "--overwrite"): lambda: sole_writer(out),
        ("split", "in.csv", "out.csv", "--force"): lambda: sole_writer(out),
        (*MAP, "--overwrite"): lambda: sole_writer(Path("map.jpg")),
        ("train", "--data_path", "in.csv", "--output_dir", "out"): lambda: sole_writer(Path("out")),
        ("release", "main"): lambda: lock(store / "release.lock", "releasing a model"),
        ("sync",): lambda: lock(store / "tracking/sync.lock", "sending runs"),
    }


@pytest.mark.parametrize("command", held(Path()), ids=" ".join)
def test_a_second_one_with_the_same_target_is_told(
    command: tuple[str, ...], knee_siglip: Run, folder: Path, tmp_path: Path
) -> None:
    before = files_in(folder)
    with held(tmp_path / "store")[command]():
        code, _, told = knee_siglip(*command)
    assert code == 1
    assert told.startswith("error: another process is ")
    assert files_in(folder) == before
