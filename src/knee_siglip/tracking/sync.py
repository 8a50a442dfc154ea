"""Sending what the trackers missed: servers that were down, trainings that were killed with their senders."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from knee_siglip.core.errors import UsageError
from knee_siglip.params.sections import TrackingParams
from knee_siglip.tracking.process import TITLES, end_senders, start_senders
from knee_siglip.tracking.runlog import RunLog, is_in_use, last_id, session_starts, undelivered
from knee_siglip.tracking.tracker import forget_files, orders_for

SECONDS_TO_SEND = 600.0
UNKNOWN = "its process was killed"


@dataclass(frozen=True)
class Pending:
    """A session of a run that a tracker does not hold. cause: why, as far as it is known."""

    log: Path
    name: str
    session: str
    stage: str
    backend: str
    cause: str

    @property
    def run(self) -> str:
        """The run's id."""
        return self.log.stem

    def __str__(self) -> str:
        named = f" ({self.name})" if self.name != self.run else ""
        return f"{self.run}{named}, {self.stage}: {TITLES[self.backend]} lacks it: {self.cause}"


def find_logs(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Logs of the runs of these ids or names, without any of all, oldest first.

    Raises:
        UsageError: there is no run of that name.
    """
    logs = sorted(folder.glob("*.jsonl"))
    if not wanted:
        return logs
    starts = {log: session_starts(RunLog(log, "").read()).values() for log in logs}
    found = []
    for name in wanted:
        named = [log for log in logs if name in (log.stem, *(start["name"] for start in starts[log]))]
        if not named:
            raise UsageError(f"there is no run {name} in {folder}; knee-siglip sync --list shows what is pending")
        found += named
    return list(dict.fromkeys(found))


def find_pending(logs: Iterable[Path]) -> list[Pending]:
    """What these runs still owe to their trackers; runs that are going on owe nothing yet."""
    return [pending for log in logs if not is_in_use(log) for pending in _pending_of(log)]


def deliver(pending: Sequence[Pending], tracking: TrackingParams, root: Path) -> list[Pending]:
    """Send the sessions, in order, to the trackers that `tracking` names; returns those that were not delivered.

    root: folder of the local trackers. What a tracker has already is not sent again.
    """
    for (log, backend), sessions in groupby(pending, key=lambda one: (one.log, one.backend)):
        *earlier, last = sessions
        for one in earlier:  # the sender of the last one sends those first that are known to have failed
            RunLog(log, one.session).write("failed", backend=backend, cause=one.cause)
        orders = orders_for(tracking, RunLog(log, last.session), root)
        end_senders(start_senders([order for order in orders if order.backend == backend]), SECONDS_TO_SEND)
        forget_files(RunLog(log, last.session))
    return [one for one in pending if one.session in undelivered(RunLog(one.log, "").read(), one.backend)]


def tracker_ids(log: Path) -> dict[str, str]:
    """Where the trackers keep a run: title to id."""
    events = RunLog(log, "").read()
    ids = {TITLES[backend]: last_id(events, backend) for backend in ("mlflow", "wandb")}
    return {title: known for title, known in ids.items() if known}


def _pending_of(log: Path) -> list[Pending]:
    events = RunLog(log, "").read()
    starts = session_starts(events)
    causes = {(e["session"], e["backend"]): e["cause"] for e in events if e["event"] == "failed"}
    return [
        Pending(log, starts[key]["name"], key, starts[key]["stage"], backend, causes.get((key, backend), UNKNOWN))
        for backend in ("mlflow", "wandb")
        for key in undelivered(events, backend)
    ]
