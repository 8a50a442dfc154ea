"""What DVC itself takes to notice images: a stage that does nothing depends on their folder, in a scratch project."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def dvc_seconds(images: Sequence[Path], new: Sequence[Path], folder: Path) -> dict[str, float]:
    """Seconds of `dvc repro`: the first one, one with nothing changed, one after `new` came to the folder."""
    (folder / "images").mkdir(parents=True)
    _move(images, folder / "images")
    _dvc(folder, "init", "--no-scm")
    (folder / "dvc.yaml").write_text("stages:\n  nothing:\n    cmd: echo\n    deps: [images]\n", encoding="utf-8")
    seconds = {"first": _dvc(folder, "repro"), "unchanged": _dvc(folder, "repro")}
    _move(new, folder / "images")
    return seconds | {"one_percent_added": _dvc(folder, "repro")}


def _move(files: Sequence[Path], folder: Path) -> None:
    for file in files:
        shutil.move(file, folder / file.name)


def _dvc(folder: Path, *command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", *command, "--quiet"], cwd=folder, check=True)
    return time.perf_counter() - started
