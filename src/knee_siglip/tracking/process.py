"""The training side of a sender: starts it, polls whether it still works, and ends it within a time limit.

Nothing here imports the sender or a tracker's library, so changing those retrains nothing.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from knee_siglip.tracking.runlog import RunLog

SOURCES = Path(__file__).parents[2]
TITLES = {"mlflow": "MLflow", "wandb": "W&B", "dvclive": "DVCLive"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orders:
    """What one sender does: which tracker, with which settings, for which session of which log."""

    backend: str
    log: str
    session: str
    options: dict[str, Any]


class SenderProcess:
    """One tracker's process, in a session of its own: Ctrl-C reaches training only, which then ends the run."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "knee_siglip.tracking.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self.process.stdin is not None
        self.stdin = self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died at once: `failure` will say so
            self.stdin.write(json.dumps(asdict(orders)).encode() + b"\n")
            self.stdin.flush()

    def failure(self) -> str | None:
        """Why the sender failed; None while it runs and after success. Never waits."""
        code = self.process.poll()
        if code in (None, 0):
            return None
        orders = self.orders
        for event in reversed(RunLog(Path(orders.log), orders.session).read()):
            if event["event"] == "failed" and (event["session"], event["backend"]) == (orders.session, orders.backend):
                return str(event["cause"])
        return f"its process ended with exit code {code}"

    def end(self, deadline: float) -> bool:
        """Wait until `deadline` (monotonic seconds), then kill. Warns and returns False on a failure."""
        began = time.monotonic()
        try:
            self.process.wait(timeout=max(deadline - began, 0))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the group: W&B has a service process of its own
            self.process.wait()
            self._warn(f"not done {time.monotonic() - began:.0f} s after the run's end")
            return False
        return not self.warn_if_failed()

    def warn_if_failed(self) -> bool:
        """Warn once that the tracker failed. Never waits."""
        cause = self.failure()
        if cause:
            self._warn(cause)
        return cause is not None

    def _warn(self, cause: str) -> None:
        title, log = TITLES[self.orders.backend], self.orders.log
        _logger.warning("%s failed (%s); the run continues without it; its values are kept in %s", title, cause, log)


def start_senders(all_orders: list[Orders]) -> list[SenderProcess]:
    """Start a process for each; one that cannot start is left out with a warning."""
    senders = []
    for orders in all_orders:
        try:
            senders.append(SenderProcess(orders))
        except OSError as error:
            _logger.warning("%s cannot start (%s); the run continues without it", TITLES[orders.backend], error)
    return senders


def end_senders(senders: list[SenderProcess], seconds: float) -> int:
    """Wait for all in parallel, at most `seconds`; returns how many failed."""
    for sender in senders:
        with contextlib.suppress(OSError):
            sender.stdin.close()  # tells it that nothing more will come
    deadline = time.monotonic() + seconds
    return [sender.end(deadline) for sender in senders].count(False)
