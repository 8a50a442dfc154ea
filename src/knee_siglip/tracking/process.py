"""The training side of a sender: starts it, hears whether it has trouble, and ends it within a time limit.

Nothing here imports the sender or a tracker's library, so changing those retrains nothing.
"""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from knee_siglip.tracking.runlog import RunLog

SOURCES = Path(__file__).parents[2]
TITLES = {"mlflow": "MLflow", "wandb": "W&B", "dvclive": "DVCLive"}
SECONDS_IN_TROUBLE = 5.0
"""How long the end of a run waits for a tracker that has failed before: the rest can be sent later."""

_logger = logging.getLogger(__name__)

_prepared: dict[str, subprocess.Popen[bytes]] = {}
"""Processes that wait for their orders, by backend."""


@dataclass(frozen=True)
class Orders:
    """What one sender does: which tracker, with which settings, for which session of which log.

    kinds: of artifacts that this tracker may get; of a model it otherwise gets the checksums, as of one with more bytes
    than `largest`.
    niceness: how far the process stands back, where a training beside it needs the cores more.
    patience: seconds that it may take for one call, and after the run's end. A copied file may take longer.
    """

    backend: str
    log: str
    session: str
    kinds: list[str]
    options: dict[str, Any]
    patience: float = 30.0
    largest: float = math.inf
    niceness: int = 0


class SenderProcess:
    """One tracker's process, in a session of its own: Ctrl-C reaches training only, which then ends the run."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.in_trouble = False
        self.restarted = False
        self._start()

    def _start(self) -> None:
        backend = self.orders.backend
        self.process = _prepared.pop(backend) if backend in _prepared else _start_process()
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        os.set_blocking(self.stdout.fileno(), False)
        with contextlib.suppress(BrokenPipeError):  # it died at once: `failure` will say so
            self.stdin.write(json.dumps(asdict(self.orders)).encode() + b"\n")
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

    def end(self, ended: float, extra: float, most: float) -> None:
        """Wait, then kill; what was not delivered is noted and told.

        ended: when the run ended, in monotonic seconds. extra: seconds for files that are copied. most: of seconds.
        """
        began = time.monotonic()
        self.hear()
        patience = SECONDS_IN_TROUBLE if self.in_trouble else self.orders.patience + extra
        try:
            self.process.wait(timeout=max(ended + min(patience, most) - began, 0))
        except subprocess.TimeoutExpired:
            self.kill()
            self._give_up(f"not done {time.monotonic() - ended:.0f} s after the run's end")
        else:
            if cause := self.failure():
                self._give_up(cause)
        self.stdout.close()

    def kill(self) -> None:
        """End it at once, and its group: W&B has a service process of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def hear(self) -> None:
        """Warn, once, that the tracker has trouble; start its process again, once, if that has died. Never waits."""
        title = TITLES[self.orders.backend]
        if line := self.stdout.readline():
            self.in_trouble = True
            _logger.warning("%s failed (%s); the run continues, and it is tried again", title, json.loads(line))
        if not self.restarted and (cause := self.failure()):
            self.restarted = True
            _logger.warning("%s failed (%s); the run continues, and it is started again", title, cause)
            self.stdout.close()
            with contextlib.suppress(OSError):
                self.stdin.close()
            with contextlib.suppress(OSError):  # the system has no process left
                self._start()

    def _give_up(self, cause: str) -> None:
        """Note for later sessions and `sync` that this one was not delivered."""
        orders = self.orders
        with contextlib.suppress(OSError):
            RunLog(Path(orders.log), orders.session).write("failed", backend=orders.backend, cause=cause)
        _logger.warning(
            "%s does not hold all of this run (%s); send the rest with: knee-siglip sync",
            TITLES[orders.backend],
            cause,
        )


def prepare_sender(backend: str) -> None:
    """Start the process of the next sender of a tracker now: its library is imported while this process computes.

    It ends when this process does, orders or not.
    """
    if backend not in _prepared:
        with contextlib.suppress(OSError):  # then there is none in advance
            _prepared[backend] = _start_process(backend)


def _start_process(*imported: str) -> subprocess.Popen[bytes]:
    """imported: backends whose library it imports before it reads its orders."""
    paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "knee_siglip.tracking.sender", *imported],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def start_senders(all_orders: list[Orders]) -> list[SenderProcess]:
    """Start a process for each; one that cannot start is left out with a warning."""
    senders = []
    for orders in all_orders:
        try:
            senders.append(SenderProcess(orders))
        except OSError as error:
            _logger.warning("%s cannot start (%s); the run continues without it", TITLES[orders.backend], error)
    return senders


def end_senders(senders: list[SenderProcess], extra: float = 0, most: float = math.inf) -> None:
    """Wait for all in parallel, each for its patience and `extra` seconds, or `most`; Ctrl-C, too, ends them."""
    for sender in senders:
        with contextlib.suppress(OSError):
            sender.stdin.close()  # tells it that nothing more will come
    ended = time.monotonic()
    try:
        for sender in senders:
            sender.end(ended, extra, most)
    except KeyboardInterrupt:
        for sender in senders:
            sender.kill()
        raise
