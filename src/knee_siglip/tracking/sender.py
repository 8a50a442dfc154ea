"""The process that feeds one tracker from a run's log: `python -m knee_siglip.tracking.sender`, its orders on stdin.

Training only appends to the log, so no tracker can slow it, block it or take it down: imports, database creation, dead
servers and hanging calls stay in here. Stdin stays open as long as the run lives; its end without an `end` event means
that training was killed, and the tracker is told so.
"""

import json
import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from knee_siglip.tracking.backend import Backend, Point
from knee_siglip.tracking.process import Orders
from knee_siglip.tracking.runlog import Event, RunLog, Tail, decode_values

POLL_SECONDS = 0.25
LONGEST_CAUSE = 200  # characters


def send(orders: Orders, alive: Callable[[], bool]) -> bool:
    """Feed the session's events to the tracker until the session ends or `alive()` is false.

    The circuit breaker: whatever the tracker raises, start and end included, is written to the log as `failed`, and
    nothing more is sent. Returns whether all went well.
    """
    log = RunLog(Path(orders.log), orders.session)
    try:
        _follow(create_backend(orders.backend, orders.options), log, orders, alive)
    except Exception as error:  # the libraries raise anything, and nothing of it may reach training
        log.write("failed", backend=orders.backend, cause=_cause(error))
        return False
    return True


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


def _follow(backend: Backend, log: RunLog, orders: Orders, alive: Callable[[], bool]) -> None:
    tail = Tail(log.path)
    earlier: list[Event] = []
    started = False
    while True:
        goes_on = alive()  # asked before reading: what was written until the session's end is then read
        events = tail.read()
        mine = [event for event in events if event["session"] == log.session]
        if not started:
            earlier = [event for event in events if event["session"] != log.session or event["event"] == "opened"]
            log.write("opened", backend=orders.backend, id=backend.open(mine[0], earlier))
            started = True
        status = _dispatch(backend, mine)
        if status or not goes_on:
            backend.close(status or "KILLED")
            return


def _dispatch(backend: Backend, events: list[Event]) -> str | None:
    """Hand events on in order, neighbouring metrics in one call; returns the status with which the session ended."""
    points: list[Point] = []
    status = None
    for event in [*events, {"event": "flush"}]:
        if event["event"] == "metrics":
            values = decode_values(event["values"])
            points += [Point(key, value, event["step"], event["time"]) for key, value in values.items()]
            continue
        if points:
            backend.metrics(points)
            points = []
        if event["event"] == "summary":
            backend.summary(decode_values(event["values"]), event["step"])
        elif event["event"] == "artifact":
            backend.artifact(Path(event["path"]), event["kind"], event["how"])
        elif event["event"] == "end":
            status = event["status"]
    return status


def _cause(error: BaseException) -> str:
    """The error and its root cause (`Connection refused`), without passwords in URIs."""
    root = error
    while below := root.__cause__ or root.__context__:
        root = below
    texts = dict.fromkeys(shorten(f"{type(e).__name__}: {e}", LONGEST_CAUSE, placeholder=" ...") for e in (error, root))
    return re.sub(r"//[^/\s@]+@", "//***@", "; ".join(texts))


def _stdin_open() -> bool:
    """Poll stdin; False once its other end is closed."""
    readable, _, _ = select.select([0], [], [], POLL_SECONDS)
    return not readable or bool(os.read(0, 1))


def main() -> int:
    """Read the orders (the first line of stdin) and follow the log."""
    os.nice(10)  # training needs the cores more
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # unbuffered, so that `select` sees what follows
        orders = Orders(**json.loads(stdin.readline()))
    return 0 if send(orders, _stdin_open) else 1


if __name__ == "__main__":
    sys.exit(main())
