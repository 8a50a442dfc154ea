"""The log of a run: an append-only file of JSON lines, from which every tracker is fed.

One file per run, `<store>/tracking/<run id>.jsonl`. Each process that logs into a run is one *session* of it: training,
later its evaluation ... Events: `start` (run, name, project, stage, tags, config), `metrics` (values, step), `summary`
(values, step), `artifact` (path, kind, how), `end` (status); and from the senders `opened` (backend, id) and `failed`
(backend, cause).
"""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from knee_siglip.core.files import atomic_file
from knee_siglip.core.paths import store_root

Event = dict[str, Any]


def tracking_folder() -> Path:
    """Folder of the logs, outside DVC's outs, which DVC deletes when a stage starts."""
    return store_root().resolve() / "tracking"


class RunLog:
    """One session's view of a run's log. Several processes may append at once: a line is one write."""

    def __init__(self, path: Path, session: str) -> None:
        self.path = path
        self.session = session

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            OSError: the disk is full or the folder not writable.
        """
        line = {"event": event, "session": self.session, "time": time.time(), **fields}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(line, default=str).encode() + b"\n")

    @property
    def run_id(self) -> str:
        """The run's id: the log's name."""
        return self.path.stem

    def read(self) -> list[Event]:
        """All whole events of all sessions, oldest first; empty when there is no such log."""
        return Tail(self.path).read() if self.path.exists() else []


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
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
        return events


def last_id(events: list[Event], backend: str) -> str | None:
    """The tracker's id of this run, or None where it never opened it."""
    ids = [event["id"] for event in events if event["event"] == "opened" and event["backend"] == backend]
    return ids[-1] if ids else None


def last_step(events: list[Event]) -> int:
    """The highest step logged so far, 0 for none."""
    return max((event["step"] for event in events if event["event"] == "metrics"), default=0)


def encode_values(values: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers as JSON holds them: nan and inf, which JSON lacks, become their names. None and text are left out."""
    encoded: dict[str, float | str] = {}
    for key, value in values.items():
        if value is not None and not isinstance(value, str):
            with suppress(TypeError, ValueError):  # numpy and torch scalars convert, lists do not
                number = float(value)
                encoded[key] = number if math.isfinite(number) else str(number)
    return encoded


def decode_values(values: Mapping[str, float | str]) -> dict[str, float]:
    """The inverse of `encode_values`."""
    return {key: float(value) for key, value in values.items()}


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
    except (OSError, ValueError, KeyError, TypeError):
        return None
