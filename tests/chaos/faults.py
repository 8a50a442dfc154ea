"""What is done to a running stage or to its files: kills at a call, refusals of the disk, damage, other clocks."""

import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

CALLS = ("replace", "rename", "fsync", "pwrite", "link", "unlink", "mkdir")
"""Of `os`: between two of them the disk stays as it is, for what this project writes itself."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE)

ROOMY = 2**28
"""Bytes of a disk that is large enough."""

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
"""From linux/sched.h and linux/mount.h."""

DAMAGES = ("bit", "bit", "bit", "bit", "zeros", "cut", "empty")


def at_call(function: str, number: int, event: Callable[[], None]) -> Callable[[], None]:
    """For `Process.prepare`: `event` happens at the `number`-th call of a function of `os` in the stage itself."""

    def prepare() -> None:
        real, owner, calls = getattr(os, function), os.getpid(), 0

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += os.getpid() == owner
            if calls == number and os.getpid() == owner:
                event()
            return real(*args, **kwargs)

        setattr(os, function, counting)

    return prepare


def count_calls(file: Path, at_end: list[Callable[[], None]]) -> Callable[[], None]:
    """For `Process.prepare`: write how often the stage itself calls each of `CALLS`."""

    def prepare() -> None:
        owner, counts = os.getpid(), dict.fromkeys(CALLS, 0)

        def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                counts[name] += os.getpid() == owner
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counting(name, getattr(os, name)))
        at_end.append(lambda: file.write_text(json.dumps(counts)))  # type: ignore[arg-type, return-value]

    return prepare


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


DEATHS: dict[str, Callable[[], None]] = {
    "process": die,
    "group": lambda: os.killpg(0, signal.SIGKILL),
    "dvc": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "Ctrl-C": lambda: os.killpg(0, signal.SIGINT),
}
"""Whom a stage kills: itself, its group, or the `dvc` or shell above it; or what a terminal sends to its group."""


def refuse(number: int) -> Callable[[], None]:
    """As the system refuses a call."""

    def raise_it() -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


@contextmanager
def small_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """If wanted, a tmpfs at that folder while the block runs, for `resize_disk`."""
    if wanted:
        _mount("mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "none", str(folder))
    try:
        yield
    finally:
        if wanted:
            _mount("umount", "--lazy", str(folder))


def resize_disk(folder: Path, free: int) -> None:
    """Let a `small_disk` have that many bytes free."""
    disk = os.statvfs(folder)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    _mount("mount", "-o", f"remount,size={used + max(free, disk.f_frsize)}", str(folder))


def can_mount() -> bool:
    """Whether this process may; after it, mounts are seen by this process and its children only."""
    libc = ctypes.CDLL(None)
    return libc.unshare(CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0


def _mount(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def limit_files(size: int) -> Callable[[], None]:
    """For `Process.prepare`: no file may be longer."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def shift_clock(seconds: float) -> Callable[[], None]:
    """For `Process.prepare`: the clock is wrong, and jumps back halfway through the stage."""

    def prepare() -> None:
        real, begun = time.time, time.monotonic()
        time.time = lambda: real() + seconds * (1 if time.monotonic() - begun < 0.7 else -1)

    return prepare


def damage(file: Path, rng: Random) -> str:
    """Damage a file's bytes and keep its times, so that only a look at its content tells. Returns what was done."""
    before, data = file.stat(), bytearray(file.read_bytes())
    how = rng.choice(DAMAGES) if data else "bit"
    if how == "bit":
        at = rng.randrange(max(1, len(data)))
        data = data or bytearray(1)
        data[at] ^= 1 << rng.randrange(8)
        told = f"bit in byte {at}"
    elif how == "zeros":
        at = rng.randrange(len(data))
        data[at : at + 64] = bytes(len(data[at : at + 64]))
        told = f"zeros from byte {at}"
    else:
        data = data[: rng.randrange(len(data))] if how == "cut" else bytearray()
        told = f"cut to {len(data)} bytes"
    file.unlink()  # hard links elsewhere keep the sound content
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return told
