import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from knee_siglip.core.errors import UserError
from knee_siglip.core.processes import split_chunks, work_in_chunks
from processes import holds_files


def total(chunk: Sequence[int]) -> int:
    return sum(chunk)


def fail_on_seven(chunk: Sequence[int]) -> int:
    if 7 in chunk:
        raise UserError("seven")
    return sum(chunk)


def crash_on_seven(chunk: Sequence[int]) -> int:
    if 7 in chunk:
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(chunk)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_chunk_is_done_once(workers):
    assert sum(work_in_chunks(total, range(100), 7, "Adding", workers)) == sum(range(100))


@pytest.mark.parametrize(("count", "workers"), [(0, 2), (1, 2), (5, 2), (1000, 2), (1000, 64)])
def test_chunks_hold_every_item_in_order_and_keep_the_limit(count, workers):
    chunks = split_chunks(range(count), limit=64, workers=workers)
    assert [item for chunk in chunks for item in chunk] == list(range(count))
    assert all(0 < len(chunk) <= 64 for chunk in chunks)


def test_the_last_chunks_are_small_so_that_all_workers_end_together():
    sizes = [len(chunk) for chunk in split_chunks(range(1000), limit=64, workers=2)]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= 4 for size in sizes[-4:])
    assert len(sizes) < 70


def blas_threads(chunk: Sequence[int]) -> list[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return [pool["num_threads"] for pool in threadpool_info()]


def test_workers_compute_with_one_thread_each():
    found = list(work_in_chunks(blas_threads, [1, 2], 1, "Counting", 2))
    assert found[0]
    assert all(threads == [1] * len(threads) for threads in found)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_the_work(workers):
    with pytest.raises(UserError, match="seven"):
        list(work_in_chunks(fail_on_seven, range(50), 5, "Adding", workers))


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(UserError, match="a worker process died"):
        list(work_in_chunks(crash_on_seven, range(50), 5, "Adding", 2))


def test_where_not_all_workers_can_start_none_is_left(monkeypatch):
    calls = itertools.count()

    def fork():
        if next(calls) == 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real()

    real = os.fork
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(OSError, match="temporarily unavailable"):
        list(work_in_chunks(total, range(50), 5, "Adding", 2))
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert not multiprocessing.active_children()


ORPHANS = """
import os, sys, time
from knee_siglip.core.processes import work_in_chunks
def sleep(chunk):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: both workers write
    time.sleep(60)
list(work_in_chunks(sleep, [1, 2], 1, "Sleeping", 2))
"""


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(holds_files(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(holds_files(pid) for pid in workers)
