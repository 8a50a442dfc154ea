"""Two real processes that write one thing at once: it is what one alone writes, or one of them is told.

Commands without a network; `python -m tests.chaos --only two_at_once` has all stages and commands.
"""

import hashlib
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.cli import main as cli
from knee_siglip.core import paths
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.pixels import build_cache

IMAGES = 16
fork = multiprocessing.get_context("fork")

COMMANDS = (
    "import in.csv out.csv",
    "split in.csv out.csv",
    "store pack out.tar",
    "store unpack in.tar --manifest out.parquet --cache out.json",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, a table, a filled store and a packed one; we are in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    names = [f"{number}.png" for number in range(IMAGES)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((40, 30), 8 * number, dtype=np.uint8)).save(name)
    ids = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names]
    table = pd.DataFrame({"img_path": names, "impression": "Normal knee.", "patient_id": names})
    table.to_csv("in.csv", index=False)
    rest = {"split": "train", "width": 30, "height": 40, "bits": 8, "text": "knee", "flags": ""}
    manifest = table.assign(image_file=names, image_id=ids, **rest)
    paths.MANIFEST.parent.mkdir(parents=True)
    manifest.to_parquet(paths.MANIFEST, index=False)
    build_cache(manifest, Transform(28, "pad", "local"))
    assert _run("store pack in.tar") == ["0"]
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_two_at_once_write_what_one_does(project: Path, command: str) -> None:
    written = []
    for commands in ([command], [command, command]):
        if "unpack" in command:
            shutil.rmtree(project / "store")
        told = _run(*commands)
        assert "0" in told
        assert all(one == "0" or one.startswith(("1 error: another process is", "2 error: out")) for one in told), told
        written.append({file: file.read_bytes() for file in project.glob("out*")} | {"rows": _rows(project)})
        for file in project.glob("out*"):
            file.unlink()
    assert written[0] == written[1]
    assert len(written[0]) > 1


def _rows(project: Path) -> list[str]:
    """Image ids of all rows in the store."""
    lines = [line for file in project.glob("store/pixels/*/*.ids") for line in file.read_text().splitlines()]
    return sorted(line.split()[1] for line in lines)


def _run(*commands: str) -> list[str]:
    """Of each command, started in a process of its own at the same moment, the exit code and the error."""
    start = fork.Barrier(len(commands))
    children = [fork.Process(target=_become, args=(command, start, f"{n}.log")) for n, command in enumerate(commands)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    logs = [Path(f"{number}.log").read_text() for number in range(len(commands))]
    errors = ["".join(line for line in log.splitlines() if line.startswith(("error: ", "Traceback"))) for log in logs]
    return [f"{child.exitcode} {error}".strip() for child, error in zip(children, errors, strict=True)]


def _become(command: str, start: "multiprocessing.synchronize.Barrier", log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's
    sys.argv = ["knee-siglip", *command.split()]
    start.wait()
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
