"""What a tracker must be able to do. One implementation per file: `mlflow_run`, `wandb_run`, `dvclive_run`."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

from knee_siglip.tracking.runlog import Event, checksums

COMPLETE = "complete"
"""Tag of a run: whether the tracker holds everything of it."""

INCOMPLETE = "no: `knee-siglip sync` sends the rest"


class Postponed(Exception):
    """The tracker cannot be reached, and everything is kept for `sync`: to try again at once would not help."""


class Point(NamedTuple):
    """One value of one curve; `time` in seconds since 1970."""

    key: str
    value: float
    step: int
    time: float


class Backend(Protocol):
    """One run of one tracker. Any method may raise: the sender then starts anew, and what was sent is sent again."""

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Start the run that `start` describes, or resume it where `earlier` events hold its id; returns the id.

        earlier: all events of other sessions, and what earlier attempts at this one noted.
        """

    def metrics(self, points: Sequence[Point]) -> None:
        """Log points, in the order of their time."""

    def summary(self, points: Sequence[Point]) -> None:
        """Log final values."""

    def tags(self, values: dict[str, str]) -> None:
        """Say something about the run that was not known when it started."""

    def artifact(self, event: Event) -> None:
        """Log a file: `path`, put into the folder `folder`; `how` is copy or reference (name and checksums)."""

    def close(self, status: str, complete: bool) -> None:
        """End the run as FINISHED, FAILED or KILLED. complete: no session of it is missing here."""


def own_tags(start: Event, earlier: list[Event], backend: str) -> dict[str, str]:
    """A later session's tags carry its stage's name, so that those of the session that made the run stay."""
    if is_first_session(start, earlier, backend):
        return dict(start["tags"])
    return {f"{start['stage']}.{key}": value for key, value in start["tags"].items()}


def is_first_session(start: Event, earlier: list[Event], backend: str) -> bool:
    """Whether this session makes the run in that tracker, rather than adding to it."""
    makers = [event["session"] for event in earlier if event["event"] == "opened" and event["backend"] == backend]
    return not makers or makers[0] == start["session"]


def points_of(events: list[Event], kind: str = "metrics") -> list[Point]:
    """Points of the events of that kind, `metrics` or `summary`, among these."""
    return [
        Point(key, float(value), event["step"], event["time"])
        for event in events
        if event["event"] == kind
        for key, value in event["values"].items()
    ]


def by_step(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, float]]]:
    """Points as (step, values), consecutive points of one step together."""
    for step, group in groupby(points, key=lambda point: point.step):
        yield step, {point.key: point.value for point in group}


def grouped(name: str) -> str:
    """A metric's name as MLflow and W&B group it: `train.loss` is `train/loss`."""
    return name.replace(".", "/")


def checksum_tags(event: Event) -> dict[str, str]:
    """What a tracker says of a model's file: how to know it, and, of an out of DVC, how to get it.

    By its md5 in dvc.lock it is found once it is committed, under any name of the experiment, and after later runs.
    """
    sums: dict[str, str] = {kind: event[kind] for kind in ("sha256", "md5") if kind in event}
    sums = sums or checksums(Path(event["path"]))
    if "out" not in event:
        return sums
    commits = f"git log --all --format=%h -S {sums['md5']} -- dvc.lock"
    return sums | {"get": f"{commits} | tail -1 | xargs dvc get . {event['out']} --rev"}
