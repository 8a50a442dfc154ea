"""DVC's queue of experiments, run to its end; shared by `experiment_queue.py` and the tests, not a benchmark.

`dvc queue status` sends a message to every worker, and a worker that reads a message which is still being written ends
(kombu 5.7, transport/filesystem.py: `_put` writes in place). On a busy machine, asking every few seconds ended all of
them. So the states are read from DVC's files here, and workers that have ended are started again, as a user would.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from dvc.repo import Repo

POLL_SECONDS = 2.0
SECONDS_TO_START = 120.0


def queue_states(project: Path) -> dict[str, str]:
    """Name to Queued, Running, Success or Failed."""
    with Repo(str(project)) as repo:
        return {entry["name"]: entry["status"] for entry in repo.experiments.celery_queue.status()}


def has_workers(project: Path) -> bool:
    """Whether a worker of the queue is running."""
    files = (project / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json")
    workers = [json.loads(file.read_text() or "{}") for file in files]
    return any(worker.get("returncode", 0) is None and psutil.pid_exists(worker["pid"]) for worker in workers)


def run_queue(project: Path, start: Callable[[], object]) -> int:
    """Wait until nothing is queued or running; returns how often `start`, which starts the workers, was called."""
    starts = 0
    while {"Queued", "Running"} & set(queue_states(project).values()):
        if not has_workers(project):
            start()
            starts += 1
            deadline = time.monotonic() + SECONDS_TO_START
            while not has_workers(project) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        time.sleep(POLL_SECONDS)
    return starts
