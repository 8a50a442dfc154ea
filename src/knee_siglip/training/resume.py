"""Resume state for interrupted training.

`<store>/runs/<fingerprint>/` holds the two newest states of one training and its best model so far. The fingerprint
covers everything the result depends on, so states are reused only for identical params, data and encoders; it does not
cover the git revision, so a commit in between costs nothing. The folder is locked while a training uses it and removed
when that training succeeds. A state is copied while training waits, and written by a thread while it continues.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import PARTIAL, atomic_file, link_or_copy, sha256, stats_below
from knee_siglip.params.sections import Params
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.unfinished import STATE, lock_run

logger = logging.getLogger(__name__)

FORMAT = "knee-siglip-run/2"
KEPT = 2
DIGEST, BEST = ".sha256", ".best"
"""Beside a state: its digests, and the best model up to it. The digests are sha256 of both other files, as `sha256sum`
writes them: torch itself reads a damaged file without an error."""

BEGUN = "begun"
"""As old as the training."""

SECONDS_TO_WAIT = 60.0
"""For another training of the same fingerprint: one that was just asked to stop needs a moment to save."""

HARMLESS = ("save_every_minutes", "save_every_steps", "prefetch")
"""Params of `train` that change no number of the result."""


def fingerprint(params: Params, data_hash: str, backbones: Path) -> str:
    """Hash of everything a training depends on: params, data (`data_hash`) and the encoders' files."""
    values = params.to_dict()
    used = {name: values[name] for name in ("seed", "image_size", "model", "train")}
    used["train"] = {name: value for name, value in used["train"].items() if name not in HARMLESS}
    start = params.train.init_from
    if start is not None:
        used["train"]["init_from"] = sha256(Path(start))
    files = {str(path.relative_to(backbones)): sha256(path) for path in sorted(backbones.rglob("*")) if path.is_file()}
    content = json.dumps([FORMAT, used, data_hash, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class StateSaver:
    """Keeps the states of one training in its folder; only the first of several processes saves.

    Args:
        minutes: between saved states.
        begun: when an earlier process began this training; None if none did.
    """

    def __init__(self, folder: Path, minutes: float, begun: datetime | None = None) -> None:
        self.folder, self.minutes, self.begun = folder, minutes, begun
        self._saved_at = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "state")
        self._writing: Future[bool] | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next state."""
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    @property
    def best_model(self) -> Path:
        """The best model so far; DVC deletes a stage's outs when the stage starts, but not this file."""
        return self.folder / "best_model.pt"

    def undamaged(self) -> Iterator[dict[str, Any]]:
        """The states whose files are as they were written, newest first; warns of each other one."""
        for file in reversed(self._states()):
            try:
                yield self._read(file)
            except _UnusableError as problem:
                logger.warning("%s %s and is not used", file, problem)

    def save(self, state: Mapping[str, Any], step: int, *, wait: bool = False) -> bool:
        """Copy a state, and write it while training continues; the state before it is waited for.

        A disk error is a warning, now or later, and training continues. A save that is killed or cut short by a power
        failure leaves the states before it.

        Args:
            wait: until it is written.

        Returns:
            Whether the disk has taken it so far.
        """
        self.finish()
        self._saved_at = time.monotonic()
        has_best = self.best_model.exists()
        try:
            if has_best:  # now: the next epoch may replace it
                link_or_copy(self.best_model, self._state(step).with_suffix(BEST))
        except UserError as error:
            _warn_unsaved(step, error)
            return False
        content = {"format": FORMAT, "run": self.folder.name, "state": copy_state(state)}
        copied = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self._writing = self._writer.submit(self._write, content, copied, step, has_best)
        return self.finish() if wait else True

    def finish(self) -> bool:
        """Wait for the state that is being written, if any; returns whether it is saved."""
        writing, self._writing = self._writing, None
        return writing is None or writing.result()

    def close(self) -> None:
        """Finish, and end the thread."""
        self.finish()
        self._writer.shutdown()

    def restore_best(self, step: int) -> None:
        """Restore the best model saved with the state of `step`: the epochs after it are trained again."""
        kept = self._state(step).with_suffix(BEST)
        self.best_model.unlink(missing_ok=True)
        if kept.exists():
            link_or_copy(kept, self.best_model)

    def remove(self) -> None:
        """Remove all states, after success."""
        self.finish()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}{STATE}"

    def _states(self) -> list[Path]:
        """Oldest first; a file without its digest was cut short and is left out."""
        return sorted(file for file in self.folder.glob(f"*{STATE}") if file.with_suffix(DIGEST).exists())

    def _read(self, file: Path) -> dict[str, Any]:
        """The state, after a check of its digests.

        Raises:
            _UnusableError: what is wrong with it.
        """
        try:
            files = [path for path in (file, file.with_suffix(BEST)) if path.exists()]
            digests = [f"{sha256(path)}  {path.name}".encode() for path in files]
            is_whole = file.with_suffix(DIGEST).read_bytes().splitlines() == digests
            content = torch.load(file, map_location="cpu", weights_only=True) if is_whole else None
        except OSError as error:
            raise _UnusableError(f"cannot be read ({error.strerror or error})") from None
        # torch raises many kinds for a file that is no checkpoint: pickle, zip, runtime and key errors
        except Exception as error:
            raise _UnusableError(f"is no saved state ({type(error).__name__})") from None
        if not is_whole:
            raise _UnusableError("is damaged")
        expected = {"format": FORMAT, "run": self.folder.name}
        if not isinstance(content, dict) or {key: content.get(key) for key in expected} != expected:
            raise _UnusableError("belongs to another training")
        state: dict[str, Any] = content["state"]
        return state

    def _write(self, content: dict[str, Any], copied: torch.Event | None, step: int, has_best: bool) -> bool:
        """In the thread. copied: reached once the copy is complete; None if it is."""
        if copied is not None:
            copied.synchronize()
        file = self._state(step)
        digest = hashlib.sha256()
        try:
            with atomic_file(file) as out:
                torch.save(content, cast(IO[bytes], _Hashing(out, digest)))
            digests = {file: digest.hexdigest()}
            if has_best:
                best = file.with_suffix(BEST)
                digests[best] = sha256(best)
            with atomic_file(file.with_suffix(DIGEST)) as out:
                out.write("".join(f"{value}  {path.name}\n" for path, value in digests.items()).encode())
        # torch raises its own error for a failing disk
        except (UserError, OSError, RuntimeError) as error:
            _warn_unsaved(step, error)
            return False
        # a later one was not usable when this training began again
        for old in [state for state in self._states() if state <= file][:-KEPT]:
            for ending in (DIGEST, STATE, BEST):
                old.with_suffix(ending).unlink(missing_ok=True)
        return True


class _UnusableError(Exception):
    """Why a state is not used."""


def _warn_unsaved(step: int, error: Exception) -> None:
    logger.warning("step %d could not be saved, the state before it is kept: %s", step, error)


def copy_state(state: Any) -> Any:
    """Nested containers copied, with every tensor on the CPU, where training does not change it.

    From a GPU into pinned memory, without waiting for it: synchronize before reading.
    """
    return _map_tensors(state, _copy)


def share_state(state: dict[str, Any] | None, ranks: Ranks) -> dict[str, Any] | None:
    """The first rank's state on all ranks, so that one alone reads the disk; the others' argument is ignored."""
    outline = ranks.broadcast_object(_map_tensors(state, lambda tensor: tensor.to("meta")))

    def exchange(tensor: Tensor) -> Tensor:
        values = torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.contiguous()
        if values.numel():
            ranks.broadcast(values.reshape(-1).view(torch.uint8))
        return values

    shared: dict[str, Any] | None = _map_tensors(state if ranks.is_first else outline, exchange)
    return shared


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(entry, change) for entry in value)
    return value


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.detach().clone()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor.detach(), non_blocking=True)


@contextmanager
def open_run(root: Path, name: str, minutes: float, *, wait: float = SECONDS_TO_WAIT) -> Iterator[StateSaver]:
    """The folder `root/name`, locked; the lock ends with the process, however it ends.

    Raises:
        UserError: another process runs the same training, or the folder cannot be written.
    """
    folder = root / name
    with lock_run(folder, wait):
        for leftover in folder.glob(f"*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        begun = folder / BEGUN
        earlier = datetime.fromtimestamp(begun.stat().st_mtime) if begun.exists() else None
        if earlier is None:
            begun.touch()
        saver = StateSaver(folder, minutes, earlier)
        try:
            yield saver
        finally:
            saver.close()


def require_space(folder: Path, models: Path, model: torch.nn.Module, with_average: bool) -> None:
    """Raise `UserError` where the disks have no room for what a training writes, before it starts.

    folder: of its states; models: of the best and the final model. A state holds the weights and, of the trained ones,
    AdamW's two moments in float32 and perhaps an average; one more is being written beside the `KEPT` ones, and each
    keeps its own best model. What an interrupted training has saved already is taken off.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    state = weights + trained * 4 * (3 if with_average else 2)
    saved = sum(stat.st_size for stat in stats_below(folder))
    needs: dict[int, int] = {}
    for place, size in ((folder, max(0, (KEPT + 1) * (state + weights) - saved)), (models, 2 * weights)):
        existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        device = existing.stat().st_dev
        needs[device] = needs.get(device, 0) + size
        if (free := shutil.disk_usage(existing).free) < needs[device]:
            raise UserError(
                f"too little space for the training's states and models: {place} needs {needs[device] / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free; free some, or set KNEE_SIGLIP_STORE to a folder on another disk"
            )


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
