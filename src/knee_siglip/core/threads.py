"""What a process may use of its machine: memory, cores, and how many threads of the numerical libraries wait how.

The threads are set before the first of these libraries is loaded, since OpenMP reads its environment only then.
"""

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

CPU_QUOTA, MEMORY_LIMIT = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")
"""`quota period` in microseconds, or `max period`; bytes, or `max`: https://docs.kernel.org/admin-guide/cgroup-v2.html"""

SPIN_COUNT = "1000"
"""How often a waiting thread looks before it sleeps: long enough for the gap between two operators, too short to take a
core from anybody (docs/decisions.md). libgomp's own value is 300,000:
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html"""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt: https://man7.org/linux/man-pages/man3/mallopt.3.html"""

KEPT_BYTES, LARGEST_KEPT = 2**30, 2**25
"""Freed memory that a process keeps, and the largest piece of it. Larger ones, too, would cut the rest into pieces."""


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def available_memory() -> int:
    """Bytes for this process and what the system keeps of its files, in a container fewer than the machine's."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such file, or no limit in it
        memory = min(memory, int(MEMORY_LIMIT.read_text(encoding="ascii")))
    return memory


def set_up_threads() -> None:
    """Let idle OpenMP threads sleep soon, and start no more of them than a container's quota feeds.

    torch's threads spin while they wait. Two trainings on one machine then take each other's cores for nothing, and so
    do a training and whatever feeds it (benchmarks/waiting_threads.py). Children inherit the settings; whatever the
    user has set wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if quota := _quota():
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed arrays, here and in processes forked from here.

    It gives arrays of more than 128 KiB back to the system at once, which clears the pages of the next one: a tenth of
    batch inference's time (docs/decisions.md). Elsewhere, and where the user has set it, nothing changes.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform == "linux" and not is_set:
        with suppress(OSError, AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _quota() -> int | None:
    """Cores' worth of time that the container gets, rounded up; None where nothing limits it."""
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
