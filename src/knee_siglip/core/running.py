"""How stages and commands run: what a user can mend is a sentence, and nothing outlives the `dvc` that started it."""

import ctypes
import errno
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from knee_siglip.core.cells import escape_warnings, printable
from knee_siglip.core.errors import REFUSALS, Interrupted, UsageError, UserError
from knee_siglip.core.files import is_first_process, lock
from knee_siglip.core.inputs import check_inputs_undamaged
from knee_siglip.core.threads import keep_freed_memory

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
NUMPY_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""What Python reads of a file name that is not UTF-8; neither Arrow nor JSON can keep it."""

SECONDS_TO_WAIT = 60.0
"""For a stage of the same name: a training that was asked to stop saves its state first."""

UMASK = "KNEE_SIGLIP_UMASK"
"""Environment variable with the rights that new files lack, in octal: `027` lets the group read. Default: `077`."""


def run_stage(main: Callable[[], None]) -> None:
    """Run `main` of a stage or a command and exit with its code.

    A `UserError`, a refusal of the disk (`REFUSALS`) and Ctrl-C become one line on stderr, without a traceback. In a
    DVC stage the process ends with the `dvc` that started it, and does not start on damaged inputs. New files are for
    their owner alone (`UMASK`): pixels, impressions and results are data of patients.
    """
    try:
        die_with_dvc()
        keep_freed_memory()
        escape_warnings()
        _keep_private()
        with _heeding_ctrl_c(), _alone():
            check_inputs_undamaged()
            main()
    except UserError as error:
        _end(error)
    except KeyboardInterrupt:
        _end(ctrl_c())
    except Exception as error:
        if not (sentence := refusal(error)):
            raise
        _end(UserError(sentence))


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """Let a Ctrl-C that meets Python in a callback, such as its garbage collector's, come again right after it.

    No exception can leave a callback: Python would print it and go on. A tenth of a second later it is in the open: a
    signal that comes just before a system call that waits is heeded only when that ends.
    """
    before = sys.unraisablehook

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if ignored.exc_type is KeyboardInterrupt:
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def ctrl_c() -> Interrupted:
    """What Ctrl-C is to a user."""
    return Interrupted("interrupted; no file is half-written, so run the same command again", signal.SIGINT)


def _end(error: UserError) -> NoReturn:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


@contextmanager
def _alone() -> Iterator[None]:
    """In a DVC stage, keep others of the same stage and folder out: one that lost its `dvc` may still be ending.

    The other processes of a torchrun belong to the first one.
    """
    stage, folder = os.environ.get("DVC_STAGE", ""), Path(".dvc")
    if not stage or not folder.is_dir() or not is_first_process():
        yield
        return
    name = stage.rpartition(":")[2]
    with lock(folder / "tmp" / f"knee-siglip-{name}.lock", f"running the stage {name}", wait=SECONDS_TO_WAIT):
        yield


def _keep_private() -> None:
    text = os.environ.get(UMASK, "077")
    try:
        mask = int(text, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o777:
        raise UsageError(f"the environment variable {UMASK} is {text!r}, not an octal number such as 027")
    os.umask(mask)


def refusal(error: BaseException) -> str:
    """A sentence where the system's refusal, or a name that nothing can keep, is behind the error; empty otherwise.

    Also of one that a library wrapped.
    """
    for cause in _causes(error):
        if isinstance(cause, UnicodeEncodeError) and LONE_SURROGATE.search(cause.object):
            return f"{cause.object}: the name is not UTF-8; rename the file or folder, then run the same command again"
        if (number := _system_error(cause)) in REFUSALS:
            named = getattr(cause, "filename", None)
            name = f"{os.fsdecode(named)}: " if isinstance(named, (str, bytes)) else ""
            return f"{name}{os.strerror(number)}; {REFUSALS[number]}, then run the same command again"
    return ""


def _system_error(error: BaseException) -> int:
    """The system's number of an error, also where a library tells it in words only; 0 where there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if found := RUST_ERROR.search(str(error)):
        return int(found[1])
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return errno.ENOSPC
    return errno.ENOSPC if isinstance(error, OSError) and NUMPY_SHORT_WRITE.search(str(error)) else 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def die_with_dvc() -> None:
    """In a DVC stage, let the kernel send SIGTERM when `dvc` is killed; otherwise the stage would go on as an orphan.

    Only in a stage: under `nohup` a training must outlive its shell. dvc.yaml starts stages with `exec`, since
    otherwise DVC's shell would be the parent. A program that replaces this process, such as torchrun, gets the signal
    too.
    """
    if "DVC_STAGE" in os.environ:
        die_with_parent(signal.SIGTERM)


def die_with_parent(number: signal.Signals | None) -> None:
    """Have the kernel send this signal when the parent process dies, or with None no signal any more (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number or 0))
