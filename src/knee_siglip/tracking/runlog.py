"""The log of a run: an append-only file of JSON lines, from which every tracker is fed.

One file per run, `<store>/tracking/<run id>.jsonl`. Each process that logs into a run is one *session* of it: training,
later its evaluation ... Events: `start` (run, parent, name, project, stage, backends, tags, config), `metrics` (values,
step), `summary` (values, step), `tags` (values), `artifact` (path, kind, folder, how), `end` (status), `child` (run);
and from the senders `opened` (backend, id), `failed` (backend, cause) and `delivered` (backend).
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from knee_siglip.core.files import atomic_file, sha256
from knee_siglip.core.paths import store_root

Event = dict[str, Any]


def tracking_folder() -> Path:
    """Folder of the logs in the store, outside DVC's outs, which DVC deletes when a stage starts."""
    return store_root().resolve() / "tracking"


class RunLog:
    """One session's view of a run's log. Several processes may append at once: a line is one write."""

    def __init__(self, path: Path, session: str) -> None:
        self.path = path
        self.session = session
        self._unwritten: deque[bytes] = deque()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, after those that earlier calls could not write.

        Raises:
            OSError: the disk is full or the folder not writable; the event is kept for the next call.
        """
        line = {"event": event, "session": self.session, "time": time.time(), **fields}
        self._unwritten.append(json.dumps(line, default=str).encode() + b"\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            while self._unwritten:
                data = self._unwritten[0]
                if file.write(data) < len(data):  # the disk is full; a new line ends the torn one
                    self._unwritten[0] = b"\n" + data.lstrip()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._unwritten.popleft()

    @property
    def run_id(self) -> str:
        """The run's id: the log's name."""
        return self.path.stem

    def read(self) -> list[Event]:
        """All whole events of all sessions, oldest first; empty when there is no such log."""
        return Tail(self.path).read() if self.path.exists() else []


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Show others that a session of this log is going on, until the block or the process ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: `is_in_use` is then always false
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether a run, or what sends it, still writes to this log."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


class Tail:
    """Reads a growing log piece by piece; a half-written last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> list[Event]:
        """The events appended since the last call. A line torn by a crash or a full disk is left out."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        events = []
        for line in whole.splitlines():
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
        return events


def last_id(events: list[Event], backend: str) -> str | None:
    """The tracker's id of this run, or None where it never opened it."""
    ids = [event["id"] for event in events if event["event"] == "opened" and event["backend"] == backend]
    return ids[-1] if ids else None


def session_starts(events: list[Event]) -> dict[str, Event]:
    """The `start` event of every session, oldest first."""
    return {event["session"]: event for event in events if event["event"] == "start"}


def undelivered(events: list[Event], backend: str) -> list[str]:
    """Sessions, oldest first, that this tracker was to get and of which it does not hold everything."""
    done = {event["session"] for event in events if event["event"] == "delivered" and event["backend"] == backend}
    starts = session_starts(events)
    return [name for name, start in starts.items() if backend in start.get("backends", ()) and name not in done]


def last_step(events: list[Event]) -> int:
    """The highest step logged so far, 0 for none."""
    return max((event["step"] for event in events if event["event"] == "metrics"), default=0)


def encode_values(values: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers as JSON holds them: nan and inf, which JSON lacks, become their names, which `float` reads.

    None and text are left out.
    """
    encoded: dict[str, float | str] = {}
    for key, value in values.items():
        if value is not None and not isinstance(value, str):
            with suppress(TypeError, ValueError):  # numpy and torch scalars convert, lists do not
                number = float(value)
                encoded[key] = number if math.isfinite(number) else str(number)
    return encoded


def checksums(path: Path) -> dict[str, str]:
    """sha256 of a file, and md5, by which dvc.lock names it."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return {"sha256": sha256(path), "md5": md5.hexdigest()}


def write_pointer(key: str, run_id: str) -> None:
    """Note that `key` (the sha256 of a model file, the fingerprint of a training) belongs to a run.

    Raises:
        UserError: the folder is not writable.
    """
    with atomic_file(tracking_folder() / f"{key}.json") as file:
        file.write(json.dumps({"run": run_id}).encode())


def read_pointer(key: str) -> str | None:
    """The run that `key` belongs to, None where it is not known."""
    try:
        return str(json.loads((tracking_folder() / f"{key}.json").read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
