"""SIGTERM (SLURM's pre-emption, the death of `dvc`) and Ctrl-C: training saves its state, reports it and ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what `sbatch --signal=USR1@120` sends before the time limit."""

IMPATIENCE = 1.0
"""Seconds after which a second signal means to end at once; torchrun forwards one Ctrl-C twice in a row."""


class StopRequest:
    """The signal that asked training to stop; None before that."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    def __call__(self, number: int, _: FrameType | None) -> None:
        """The signal handler. A second signal ends the process at once; the last saved state remains."""
        if self.signal is not None and time.monotonic() - self._asked_at > IMPATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), time.monotonic()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn signals into a request while the block runs; in other threads, which get no signals, change nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in ASKING_TO_STOP}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
