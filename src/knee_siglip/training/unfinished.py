"""The trainings that were killed or failed: what the store holds of them. Imports no torch."""

import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from knee_siglip.core.files import lock, stats_below

LOCK, STATE = ".lock", ".state"


def lock_run(folder: Path, wait: float) -> AbstractContextManager[None]:
    """Keep other processes from a training's folder, waiting so many seconds for them.

    Raises:
        UserError: another process runs this training, or the folder cannot be written.
    """
    return lock(folder / LOCK, "running this very training", wait=wait)


@dataclass(frozen=True)
class Unfinished:
    """A training that was killed or failed. step: of its newest state, None before the first one."""

    folder: Path
    step: int | None
    bytes: int
    last_used: datetime


def unfinished_runs(root: Path) -> list[Unfinished]:
    """Every unfinished training under the folder of runs `root`, the last used first."""
    found = []
    for folder in filter(Path.is_dir, root.glob("*")):
        with suppress(FileNotFoundError):  # that training has just ended
            found.append(_examine(folder))
    return sorted(found, key=lambda run: run.last_used, reverse=True)


def remove_unfinished(run: Unfinished) -> None:
    """Remove its states; the same training then starts from scratch.

    Raises:
        UserError: it is running.
    """
    with lock_run(run.folder, wait=0):
        shutil.rmtree(run.folder, ignore_errors=True)


def _examine(folder: Path) -> Unfinished:
    stats = stats_below(folder) or [folder.stat()]
    steps = [int(file.stem.partition("-")[2]) for file in folder.glob(f"step-{'[0-9]' * 9}{STATE}")]
    # a best model may have several names
    sizes = {stat.st_ino: stat.st_blocks * 512 for stat in stats}
    newest = datetime.fromtimestamp(max(stat.st_mtime for stat in stats))
    return Unfinished(folder, max(steps, default=None), sum(sizes.values()), newest)
