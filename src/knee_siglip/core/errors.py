"""Errors that a user can mend."""

import errno
import signal
from pathlib import Path

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ROWS_FAILED = 3


REFUSALS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit of the files' size (ulimit -f), or use another file system",
    errno.EROFS: "make the file system writable, or run where it is",
    errno.EACCES: "check the rights of the file and its folder",
    errno.EPERM: "check the rights of the file and its folder",
    errno.EIO: "the disk or the network drive fails: check it, and keep a copy of what it holds",
    **dict.fromkeys(
        (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
        "the network drive does not answer or has changed: mount it again",
    ),
    errno.EBUSY: "another program uses the file or its folder: end it",
    errno.EXDEV: "the file system cannot rename within that folder: use another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: end some programs",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or end some",
    errno.ENOMEM: "end some programs, or make the batch or the images smaller",
    errno.EISDIR: "a folder has the name of a file: remove or rename it",
    errno.ELOOP: "a link leads to itself: remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file or a broken link has that name: remove or rename it",
    errno.ENOTDIR: "a file has the name of a folder: remove or rename it",
}
"""What the system refuses, with what to do about it."""


class UserError(Exception):
    """A sentence for the user: what is wrong, where (file, row or parameter), and what to do."""

    exit_code = EXIT_FAILED


class UsageError(UserError):
    """Wrong flags or parameters: nothing was started."""

    exit_code = EXIT_USAGE


class Interrupted(UserError):
    """Asked to stop by a signal; what was done is kept. The exit code is the shell's for that signal."""

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def unwritable(path: Path, error: OSError) -> UserError:
    """What the system's refusal to write a file is to a user."""
    advice = REFUSALS.get(error.errno or 0, "free some space or check the rights")
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")
