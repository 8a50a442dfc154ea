"""Resume state for interrupted training.

`<store>/runs/<fingerprint>/` holds the two newest states of one training and its best model so far. The fingerprint
covers everything the result depends on, so states are reused only for identical params, data and encoders; it does not
cover the git revision, so a commit in between costs nothing. The folder is locked while a training uses it and removed
when that training succeeds.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import torch

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import PARTIAL, atomic_file, link_or_copy, lock, sha256
from knee_siglip.params.sections import Params

logger = logging.getLogger(__name__)

FORMAT = "knee-siglip-run/1"
KEPT = 2
STATE, DIGEST, BEST = ".state", ".sha256", ".best"
"""A state, its sha256 (torch itself reads a damaged file without an error), the best model up to it."""

LOCK = ".lock"

SECONDS_TO_WAIT = 60.0
"""For another training of the same fingerprint: one that was just asked to stop needs a moment to save."""

HARMLESS = ("save_every_minutes", "save_every_steps", "prefetch")
"""Params of `train` that change no number of the result."""


def fingerprint(params: Params, data_hash: str, backbones: Path) -> str:
    """Hash of everything a training depends on: params, data (`data_hash`) and the encoders' files."""
    values = params.to_dict()
    used = {name: values[name] for name in ("seed", "image_size", "model", "train")}
    used["train"] = {name: value for name, value in used["train"].items() if name not in HARMLESS}
    files = {str(path.relative_to(backbones)): sha256(path) for path in sorted(backbones.rglob("*")) if path.is_file()}
    content = json.dumps([FORMAT, used, data_hash, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class StateSaver:
    """Keeps the states of one training in its folder; only the first of several processes saves.

    Args:
        minutes: between saved states.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder = folder
        self._seconds = 60 * minutes
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next state."""
        return time.monotonic() - self._saved_at >= self._seconds

    @property
    def best_model(self) -> Path:
        """The best model so far; DVC deletes a stage's outs when the stage starts, but not this file."""
        return self.folder / "best_model.pt"

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state; None if there is none."""
        for file in reversed(self._states()):
            try:
                if file.with_suffix(DIGEST).read_text() == sha256(file):
                    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                    return state
                problem = "is damaged"
            except OSError as error:
                problem = f"cannot be read ({error.strerror or error})"
            logger.warning("%s %s; using the state before it", file, problem)
        return None

    def save(self, state: Mapping[str, Any], step: int) -> bool:
        """Save a state atomically; on a disk error warn, return false and let training continue.

        A save that is killed or cut short by a power failure leaves the states before it.
        """
        file = self._state(step)
        digest = hashlib.sha256()
        self._saved_at = time.monotonic()
        try:
            if self.best_model.exists():
                link_or_copy(self.best_model, file.with_suffix(BEST))
            with atomic_file(file) as out:
                torch.save(dict(state), cast(IO[bytes], _Hashing(out, digest)))
            with atomic_file(file.with_suffix(DIGEST)) as out:
                out.write(digest.hexdigest().encode())
        # torch raises its own error for a failing disk
        except (UserError, RuntimeError) as error:
            logger.warning("step %d could not be saved, the state before it is kept: %s", step, error)
            return False
        for old in self._states()[:-KEPT]:
            for ending in (DIGEST, STATE, BEST):
                old.with_suffix(ending).unlink(missing_ok=True)
        return True

    def restore_best(self, step: int) -> None:
        """Restore the best model saved with the state of `step`: the epochs after it are trained again."""
        kept = self._state(step).with_suffix(BEST)
        self.best_model.unlink(missing_ok=True)
        if kept.exists():
            link_or_copy(kept, self.best_model)

    def remove(self) -> None:
        """Remove all states, after success."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}{STATE}"

    def _states(self) -> list[Path]:
        """Oldest first; a file without its digest was cut short and is left out."""
        return sorted(file for file in self.folder.glob(f"*{STATE}") if file.with_suffix(DIGEST).exists())


@contextmanager
def open_run(root: Path, name: str, minutes: float, *, wait: float = SECONDS_TO_WAIT) -> Iterator[StateSaver]:
    """The folder `root/name`, locked; the lock ends with the process, however it ends.

    Raises:
        UserError: another process runs the same training, or the folder cannot be written.
    """
    folder = root / name
    with lock(folder / LOCK, "running this very training", wait=wait):
        for leftover in folder.glob(f"*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        yield StateSaver(folder, minutes)


@dataclass(frozen=True)
class Unfinished:
    """A training that was killed or failed. step: of its newest state, None before the first one."""

    folder: Path
    step: int | None
    bytes: int
    last_used: datetime


def unfinished_runs(root: Path) -> list[Unfinished]:
    """Every unfinished training under the folder of runs `root`, the last used first."""
    found = [_examine(folder) for folder in root.glob("*") if folder.is_dir()]
    return sorted(found, key=lambda run: run.last_used, reverse=True)


def remove_unfinished(run: Unfinished) -> None:
    """Remove its states; the same training then starts from scratch.

    Raises:
        UserError: it is running.
    """
    with open_run(run.folder.parent, run.folder.name, 0, wait=0) as saver:
        saver.remove()


def _examine(folder: Path) -> Unfinished:
    stats = [file.stat() for file in folder.iterdir()] or [folder.stat()]
    steps = [int(file.stem.partition("-")[2]) for file in folder.glob(f"*{STATE}")]
    # a best model may have several names
    sizes = {stat.st_ino: stat.st_blocks * 512 for stat in stats}
    newest = datetime.fromtimestamp(max(stat.st_mtime for stat in stats))
    return Unfinished(folder, max(steps, default=None), sum(sizes.values()), newest)


class _Hashing:
    """Hashes what is written to a file, so that the file is not read again."""

    def __init__(self, file: IO[bytes], digest: "hashlib._Hash") -> None:
        self._file, self._digest = file, digest

    def write(self, data: Any) -> int:
        """As files do."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """As files do."""
        self._file.flush()
