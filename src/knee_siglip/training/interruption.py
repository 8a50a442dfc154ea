"""SIGTERM (SLURM's pre-emption), Ctrl-C, and the death of `dvc`: training saves its state, says so, and ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from knee_siglip.core.processes import die_with_parent

ASKING_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1: what `sbatch --signal=USR1@120` sends before the time is up."""

IMPATIENCE = 1.0
"""Seconds after which a second signal is a person who will not wait; torchrun hands one Ctrl-C on twice at once."""


class StopRequest:
    """Which signal asks to stop; None while none does."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    def __call__(self, number: int, _: FrameType | None) -> None:
        """The signal handler. A second signal ends the process at once, with what was saved before."""
        if self.signal is not None and time.monotonic() - self._asked_at > IMPATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), time.monotonic()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Signals become a request while this lasts; outside the main thread, where none arrive, nothing is changed."""
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


def die_with_dvc() -> None:
    """As a stage of DVC: let the kernel send SIGTERM when `dvc` is killed, or training would go on as an orphan.

    Only there: under `nohup` a training must outlive the shell that started it. dvc.yaml says `exec`, or a shell that
    DVC puts between would be the parent. What takes this process's place, such as torchrun, is told in the same way.
    """
    if "DVC_STAGE" in os.environ:
        die_with_parent(signal.SIGTERM)
