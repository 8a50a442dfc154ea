"""Files: one way to write them whole, one lock between processes, one hash."""

import fcntl
import hashlib
import io
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES, EBADF, EINVAL, ENOSYS, ENOTSUP, EPERM
from pathlib import Path
from typing import BinaryIO, TextIO

from knee_siglip.core.errors import UserError, unwritable

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
"""How the names of unfinished files and folders end; git ignores them."""

NOT_FOR_FOLDERS = (EINVAL, ENOTSUP, ENOSYS, EBADF, EACCES, EPERM)
"""What network and FUSE file systems answer that cannot fsync a folder; the files themselves are safe."""

POLL_SECONDS = 0.2


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all, even if the process is killed or the power fails. Its folder is made if needed.

    Until the block ends, the content lies in a partial file beside `path`, so two writers never mix: the last one wins.
    After an error the partial file is removed.

    Raises:
        UserError: the system refuses.
    """
    partial = _partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        _remove(partial)


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Like `atomic_file`, for UTF-8 text whose line ends are written as they are."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushes, and leaves closing to `atomic_file`


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a new folder that takes the place of `path` when the block ends; after an error the old one stays.

    Raises:
        UserError: the system refuses.
    """
    partial = _partial_name(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link the file to `target`, replacing it; copy where the file system has no hard links.

    Raises:
        UserError: the system refuses.
    """
    partial = _partial_name(target)
    try:
        os.link(source, partial)
        partial.replace(target)
    except OSError:
        with atomic_file(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy)
    finally:
        _remove(partial)  # rename does nothing where both names are already the same file


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted folder by folder; hidden and unfinished ones are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(PARTIAL))
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():
                yield file


def stats_below(folder: Path) -> list[os.stat_result]:
    """Of every file below a folder, but for those that another process removes meanwhile."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found.append(Path(parent, name).stat())
    return found


def flush_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder: without the latter a power failure may lose a new file's name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NOT_FOR_FOLDERS):
            raise
    finally:
        os.close(descriptor)


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started together, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def lock(path: Path, doing: str, *, wait: float = math.inf) -> Iterator[None]:
    """Keep other processes out while the block runs. The lock file and its folder are made if needed.

    The system frees the lock when the process ends, however that happens, and the last of its forked workers.

    Args:
        doing: what the holder does, for the messages to others: "filling the store".
        wait: seconds to wait for another holder.

    Raises:
        UserError: another process still holds it, the folder cannot be written, or its file system has no locks.
    """
    descriptor = _acquire(path, doing, wait)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough while a child has a copy
        os.close(descriptor)


@contextmanager
def sole_writer(path: Path, *, wait: float = 0) -> Iterator[None]:
    """Keep others from writing `path`, and what belongs to it, while the block runs.

    The lock lies beside it and goes with the block. There is none in a folder that is missing or cannot be written,
    which the command will say, where the file system has no locks, and for the others of a torchrun's first process.

    Raises:
        UserError: another process is writing it, and has not ended after `wait` seconds.
    """
    place = path.absolute()
    file = place.parent / f".{place.name}.lock"
    with ExitStack() as stack:
        if place.parent.is_dir() and is_first_process():
            with suppress(_NoLockError):
                stack.enter_context(lock(file, f"writing {path}", wait=wait))
                stack.callback(file.unlink, missing_ok=True)
        yield


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_name(path: Path) -> str:
    r"""The path as text: bytes that are no UTF-8 and unprintable characters are escaped, as in `caf\xe9.png`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _NoLockError(UserError):
    """The folder cannot be written, or its file system has no locks."""


def _acquire(path: Path, doing: str, wait: float) -> int:
    deadline = time.monotonic() + wait
    told = False
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise UserError(f"another process is {doing} (its lock: {path}); wait for it, or stop it, then start again")
        if not told:
            limit = "" if math.isinf(wait) else f" up to {wait:.0f} s"
            logger.warning("another process is %s; waiting%s for it to finish", doing, limit)
            told = True
        time.sleep(POLL_SECONDS)
    return descriptor


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock; None while another process does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _NoLockError(f"{unwritable(path.parent, error)} (KNEE_SIGLIP_STORE moves the store)") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    except OSError as error:  # ENOLCK, ENOSYS: Lustre mounted without flock, NFS without its lock service
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise _NoLockError(
            f"cannot lock {path}: {error.strerror}; its file system has no file locks, so use a folder on another disk "
            "(KNEE_SIGLIP_STORE moves the store)"
        ) from None
    os.close(descriptor)
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    """False where the last holder removed the lock file together with its folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(partial: Path) -> None:
    """Take an unfinished file away, if it is there; a disk that refuses that too has said why before."""
    with suppress(OSError):
        partial.unlink()


def _partial_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
