"""Work in chunks on all cores, with a progress bar."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from knee_siglip.core.errors import UserError
from knee_siglip.core.running import die_with_parent
from knee_siglip.core.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

SMALLEST_CHUNK = 4
"""Handing over a chunk costs about what decoding a tenth of an image does."""


def split_chunks(items: Sequence[Item], limit: int, workers: int) -> list[Sequence[Item]]:
    """Chunks of at most `limit` items, in order, shrinking towards the end so that all workers end together."""
    smallest = max(1, min(limit, SMALLEST_CHUNK, len(items) // (8 * workers)))
    chunks, start = [], 0
    while start < len(items):
        size = max(smallest, min(limit, (len(items) - start) // (4 * workers)))
        chunks.append(items[start : start + size])
        start += size
    return chunks


def work_in_chunks(
    function: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    limit: int,
    description: str,
    workers: int | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(chunk)` for chunks of at most `limit` items, in the order of completion.

    One worker or one chunk runs in this process. An exception of `function` ends the work; so does `close()` of the
    generator, which returns when no worker is left. workers: None is one for each core.

    Raises:
        UserError: a worker process was killed (mostly out of memory) or crashed inside a decoder.
    """
    if not items:
        return
    workers = workers or available_cores()
    chunks = split_chunks(items, limit, workers)
    if workers <= 1 or len(chunks) <= 1:
        with _progress(chunks, description) as advance:
            for chunk in chunks:
                yield function(chunk)
                advance(len(chunk))
        return
    with worker_processes(min(workers, len(chunks)), description) as pool:
        sizes = {pool.submit(function, chunk): len(chunk) for chunk in chunks}
        with _progress(chunks, description) as advance:  # after the fork: its refresh thread must not be copied
            for future in as_completed(sizes):
                yield future.result()
                advance(sizes[future])


@contextmanager
def worker_processes(count: int, description: str) -> Iterator[ProcessPoolExecutor]:
    """Processes for work that holds the interpreter lock; what still waits when the block ends is not done.

    Raises:
        UserError: a process was killed (mostly out of memory) or crashed inside a decoder.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()  # else every collection, here and in the workers, goes through all that is loaded
    # fork starts at once and does not import the caller's script (and torch with it) once per worker
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool, others = ProcessPoolExecutor(count, mp_context=context, initializer=_set_up_worker), active_children()
    try:
        yield pool
    except OSError:  # where the system refuses the second process, the pool forgets the first one, which waits for ever
        for worker in set(active_children()).difference(others):
            worker.kill()
        raise
    except BrokenProcessPool:
        raise UserError(
            f"{description}: a worker process died; out of memory, or a decoder crashed on a damaged file"
        ) from None
    finally:
        if not frozen:
            gc.unfreeze()
        pool.shutdown(cancel_futures=True)


def _set_up_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)  # ends also a worker whose decoder never lets the thread below run
    threadpool_limits(1)  # the cores are taken: BLAS threads of all workers would only wait for each other
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _progress(chunks: Sequence[Sequence[object]], description: str) -> Iterator[Callable[[int], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=sum(map(len, chunks)))
        yield lambda count: progress.advance(task, count)
