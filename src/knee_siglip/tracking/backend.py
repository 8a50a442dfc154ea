"""What a tracker must be able to do. One implementation per file: `mlflow_run`, `wandb_run`, `dvclive_run`."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

from knee_siglip.tracking.runlog import Event


class Point(NamedTuple):
    """One value of one curve; `time` in seconds since 1970."""

    key: str
    value: float
    step: int
    time: float


class Backend(Protocol):
    """One run of one tracker. Any method may raise: the sender then drops that tracker for the session."""

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Start the run that `start` describes, or resume it where `earlier` events hold its id; returns the id."""

    def metrics(self, points: Sequence[Point]) -> None:
        """Log points, in the order of their time."""

    def summary(self, values: dict[str, float], step: int) -> None:
        """Log final values."""

    def artifact(self, path: Path, kind: str, how: str) -> None:
        """Log a file: `how` is copy or reference (where it lies and its sha256)."""

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


def later_tags(start: Event) -> dict[str, str]:
    """A later session's tags carry its stage's name, so that those of the session that made the run stay."""
    return {f"{start['stage']}.{key}": value for key, value in start["tags"].items()}


def by_step(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, float]]]:
    """Points as (step, values), consecutive points of one step together."""
    for step, group in groupby(points, key=lambda point: point.step):
        yield step, {point.key: point.value for point in group}
