"""The process that feeds one tracker from a run's log: `python -m knee_siglip.tracking.sender`, its orders on stdin.

Training only appends to the log, so no tracker can slow it, block it or take it down: imports, database creation, dead
servers and hanging calls stay in here. Stdin stays open as long as the run lives; its end without an `end` event means
that training was killed, and the tracker is told so.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from textwrap import shorten
from typing import Any

from knee_siglip.core.running import die_with_parent
from knee_siglip.tracking.backend import Backend, Postponed, points_of
from knee_siglip.tracking.privacy import without_password, without_places
from knee_siglip.tracking.process import Orders
from knee_siglip.tracking.runlog import Event, RunLog, Tail, in_use, last_id, undelivered

POLL_SECONDS = 0.25
LONGEST_CAUSE = 200  # characters
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts
SLOWEST_UPLOAD = 1e6
"""Bytes per second; a file may take the longer."""


def send(orders: Orders, alive: Callable[[], bool], tell: Callable[[str], None] | None = None) -> bool:
    """Feed the session's events to the tracker until the session ends or `alive()` is false.

    Whatever the tracker raises, start and end included, is told (the first time) and noted in the log; then all is sent
    again, after pauses that grow. When the session is over there is one last attempt. Returns whether all went well.
    """
    log = RunLog(Path(orders.log), orders.session)
    for attempt in count():
        over = not alive() or _has_ended(log)  # asked first, so that the last attempt sees every event
        try:
            _deliver(log, orders, alive)
            return True
        except Exception as error:  # the libraries raise anything, and nothing of it may reach training
            cause = _cause(error)
            over = over or isinstance(error, Postponed)
        if tell and attempt == 0 and not over:
            tell(cause)
        with suppress(OSError):
            if over or attempt == 0:
                log.write("failed", backend=orders.backend, cause=cause)
        if over:
            return False
        _pause(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE), lambda: alive() and not _has_ended(log))
    raise AssertionError("count() does not end")


def create_backend(name: str, options: dict[str, Any]) -> Backend:
    """The backend of that name; its library, which takes seconds to import, is imported here and nowhere else."""
    if name == "mlflow":
        from knee_siglip.tracking.mlflow_run import MlflowRun

        return MlflowRun(**options)
    if name == "wandb":
        from knee_siglip.tracking.wandb_run import WandbRun

        return WandbRun(**options)
    from knee_siglip.tracking.dvclive_run import DvcliveRun

    return DvcliveRun(**options)


def _deliver(log: RunLog, orders: Orders, alive: Callable[[], bool]) -> None:
    """Send the sessions of this run that the tracker missed, then this one, as it grows."""
    events = log.read()
    failed = {
        event["session"] for event in events if (event["event"], event.get("backend")) == ("failed", orders.backend)
    }
    for missed in undelivered(events, orders.backend):
        if missed != log.session and missed in failed:
            _follow(RunLog(log.path, missed), replace(orders, session=missed), lambda: False)
    _follow(log, orders, alive)


def _follow(log: RunLog, orders: Orders, alive: Callable[[], bool]) -> None:
    tail = Tail(log.path)
    backend = create_backend(orders.backend, orders.options)
    started = False
    while True:
        goes_on = alive()  # asked before reading: what was written until the session's end is then read
        events = tail.read()
        mine = [event for event in events if event["session"] == log.session]
        if not started:
            earlier = [event for event in events if event["session"] != log.session or event["event"] == "opened"]
            start = next(event for event in mine if event["event"] == "start")
            start["parent_id"] = _parent_id(log, start, orders.backend)
            start["goes_on"] = goes_on
            if "patients" not in orders.kinds:
                start["config"] = without_places(start["config"])
            with _time_limit(orders.patience):
                opened = backend.open(start, earlier)
            if opened != last_id(earlier, orders.backend):
                log.write("opened", backend=orders.backend, id=opened)
            started = True
        status = _dispatch(backend, mine, orders)
        if status or not goes_on:
            others = set(undelivered(log.read(), orders.backend)) - {log.session}
            with _time_limit(orders.patience):
                backend.close(status or "KILLED", not others)
            log.write("delivered", backend=orders.backend)
            return


def _parent_id(log: RunLog, start: Event, backend: str) -> str | None:
    """The tracker's id of the run that trained the model of this one."""
    parent = start.get("parent")
    return last_id(RunLog(log.path.with_name(f"{parent}.jsonl"), "").read(), backend) if parent else None


def _dispatch(backend: Backend, events: list[Event], orders: Orders) -> str | None:
    """Hand events on in order, neighbouring metrics in one call; returns the status with which the session ended."""
    status = None
    curves: list[Event] = []
    for event in [*events, {"event": "flush"}]:
        if event["event"] == "metrics":
            curves.append(event)
            continue
        if curves:
            with _time_limit(orders.patience):
                backend.metrics(points_of(curves))
            curves = []
        if event["event"] == "end":
            status = event["status"]
        _dispatch_one(backend, event, orders)
    return status


def _dispatch_one(backend: Backend, event: Event, orders: Orders) -> None:
    allowed = event.get("kind") in orders.kinds and (event["kind"] != "model" or event["bytes"] <= orders.largest)
    patience = orders.patience + event.get("bytes", 0) / SLOWEST_UPLOAD
    with _time_limit(patience):
        if event["event"] == "summary":
            backend.summary(points_of([event], "summary"))
        elif event["event"] == "tags":
            backend.tags(event["values"])
        elif event["event"] == "artifact" and (allowed or event["kind"] == "model"):
            backend.artifact(event if allowed else event | {"how": "reference"})


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer: a server that answers byte by byte never times out by itself."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"no answer in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _has_ended(log: RunLog) -> bool:
    return any(event["event"] == "end" and event["session"] == log.session for event in log.read())


def _pause(seconds: float, wanted: Callable[[], bool]) -> None:
    """Sleep, as long as it is wanted; asking waits a moment too."""
    deadline = time.monotonic() + seconds
    while wanted() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 10)


def _cause(error: BaseException) -> str:
    """The error and its root cause (`Connection refused`), without passwords in URIs."""
    root = error
    while below := root.__cause__ or root.__context__:
        root = below
    texts = dict.fromkeys(shorten(f"{type(e).__name__}: {e}", LONGEST_CAUSE, placeholder=" ...") for e in (error, root))
    return without_password("; ".join(texts))


def _stdin_open() -> bool:
    """Poll stdin; False once its other end is closed."""
    readable, _, _ = select.select([0], [], [], POLL_SECONDS)
    return not readable or bool(os.read(0, 1))


def main() -> int:
    """Read the orders (the first line of stdin) and follow the log. What goes wrong is told on stdout, a line each.

    Arguments: backends whose library is imported before.
    """
    told = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the libraries print as they like

    def tell(cause: str) -> None:
        with suppress(OSError):  # training was killed
            os.write(told, json.dumps(cause).encode() + b"\n")

    if "mlflow" in sys.argv[1:]:  # W&B reads its settings when it is imported
        die_with_parent(signal.SIGKILL)
        with suppress(Exception):  # it comes again, and is told, once there are orders
            from knee_siglip.tracking.mlflow_models import import_mlflow

            import_mlflow()
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # unbuffered, so that `select` sees what follows
        line = stdin.readline()
    if not line:  # there was nothing to log
        return 0
    die_with_parent(None)  # what a killed training has logged is still sent
    orders = Orders(**json.loads(line))
    os.nice(orders.niceness)
    if orders.backend == "dvclive":  # the folder of a killed training belongs to the one that is started next
        die_with_parent(signal.SIGKILL)
    with in_use(Path(orders.log)):
        return 0 if send(orders, _stdin_open, tell) else 1


if __name__ == "__main__":
    sys.exit(main())
