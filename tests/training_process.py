"""Trainings in processes of their own, which tests kill. A module of its own: such a process imports it by name."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from knee_siglip.core.running import run_stage
from knee_siglip.training import run as training
from toys import open_without_dvclive

CONTEXT = multiprocessing.get_context("forkserver")
"""Its server imports once what a training imports; each is then a fresh process without the seconds of importing."""

CONTEXT.set_forkserver_preload(
    ["knee_siglip.training.run", "torch._dynamo", "sklearn.covariance", "pyarrow.parquet", "peft"]
)


def run_in_child(files, params, kill_at=None, counted=None, environment=None):
    """Train; at the `kill_at`-th call of a Python function the process is killed, wherever that is."""
    os.environ.update(environment or {})
    os.dup2(os.open(told_file(files), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    torch.set_num_threads(1)
    training.open_tracker = open_without_dvclive
    calls = 0

    def count(frame, event, argument):  # returns None: the lines of the function are not traced
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill_at or counted:
        sys.settrace(count)  # half the time of a profile function, which is told of returns and of C too
        threading.settrace(count)  # the thread that writes states
    run_stage(lambda: training.train(params, files, "cpu"))
    sys.settrace(None)
    if counted:
        Path(counted).write_text(str(calls))


def told_file(files):
    """What the last training wrote to stderr."""
    return files.manifest.with_name("stderr.txt")


def start(*arguments):
    environment = {name: os.environ[name] for name in ("KNEE_SIGLIP_STORE",)}
    child = CONTEXT.Process(target=run_in_child, args=arguments, kwargs={"environment": environment})
    child.start()
    return child


def run(*arguments):
    child = start(*arguments)
    child.join()
    return child.exitcode


def wait_until(happened, child):
    """What `happened` returns as soon as it is true; fails where the training ends before that."""
    while not (found := happened()):
        assert child.is_alive(), f"ended with {child.exitcode} before it happened"
        time.sleep(0.01)
    return found
