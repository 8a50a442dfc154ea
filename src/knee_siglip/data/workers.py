"""Work in chunks on all cores, with a progress bar."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from knee_siglip.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_chunks(items: Sequence[Item], limit: int, workers: int) -> list[Sequence[Item]]:
    """Equal chunks of at most `limit` items; small work gives each worker several, so that all end together."""
    size = max(1, min(limit, -(-len(items) // (8 * workers))))
    return [items[start : start + size] for start in range(0, len(items), size)]


def work_in_chunks(
    function: Callable[[Sequence[Item]], Result], chunks: Sequence[Sequence[Item]], workers: int, description: str
) -> Iterator[Result]:
    """Yield `function(chunk)` for every chunk, in the order in which they get done.

    One worker or one chunk is done in this process. An exception of `function` ends the work.

    Raises:
        UserError: a worker process was killed (most often for want of memory) or crashed inside a decoder.
    """
    if workers <= 1 or len(chunks) <= 1:
        with _progress(chunks, description) as advance:
            for chunk in chunks:
                yield function(chunk)
                advance(len(chunk))
        return
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=_context(), initializer=_set_up_worker)
    try:
        sizes = {pool.submit(function, chunk): len(chunk) for chunk in chunks}
        with _progress(chunks, description) as advance:  # after the fork: its refresh thread must not be copied
            for future in as_completed(sizes):
                yield future.result()
                advance(sizes[future])
    except BrokenProcessPool:
        raise UserError(
            f"{description}: a worker process died; out of memory, or a decoder crashed on a damaged file"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """fork starts at once and does not import the caller's script (and torch with it) once per worker."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _set_up_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed instead of living on as an orphan."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
