"""Stages as processes of their own, forked from one that has loaded the libraries; killed, limited or doubled.

A process between stands for `dvc`: the stage is its child and in a group of its own, as under DVC.
"""

import importlib
import os
import runpy
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .project import COMMANDS, ROOT, Project, environment

LONGEST, UNKNOWN = 20, 60.0
"""Times its undisturbed seconds, or those of a part that was not run yet, after which a process counts as hung."""

LOADED = (
    "knee_siglip",
    "torch",
    "sklearn",
    "scipy",
    "joblib",
    "matplotlib",
    "PIL",
    "pandas",
    "pyarrow",
    "multiprocessing",
)
"""Packages that stages import when they need them."""


AT_END: list[Callable[[], None]] = []
"""What a child calls before it ends."""


@dataclass(frozen=True)
class Ended:
    """How a stage ended. code: negative for a signal, None where `dvc` ended before it. hung: it had to be killed."""

    code: int | None
    said: str
    seconds: float
    hung: bool = False

    @property
    def sentence(self) -> bool:
        """Whether it failed as promised: an exit code, a line that says why, no traceback."""
        return self.code not in (0, None) and "error: " in self.said and "Traceback" not in self.said

    @property
    def last_line(self) -> str:
        """Of what it said."""
        last = self.said.strip().splitlines()[-1] if self.said.strip() else ""
        return last if self.code == 0 else f"{last} (exit code {self.code})"


class Process:
    """A stage, as DVC starts it, or a command of the project, running.

    Args:
        name: of the stage or the command.
        prepare: called in the child before its script: sets limits, breaks system calls.
    """

    def __init__(self, project: Project, name: str, prepare: Callable[[], None] = lambda: None) -> None:
        descriptor, log = tempfile.mkstemp()  # not on the disk that may be full
        os.close(descriptor)
        self.log = Path(log)
        self.started = time.monotonic()
        self._longest = LONGEST * max(project.seconds.get(name, UNKNOWN), UNKNOWN / 10)
        self._alive, held = os.pipe()  # the end that all its processes hold closes with the last of them
        told, tell = os.pipe()
        self.dvc = os.fork()
        if self.dvc == 0:
            os.setsid()
            stage = os.fork()
            if stage == 0:
                _become(project, name, self.log, prepare)
            os.write(tell, f"{stage}\n".encode())
            os.close(held)
            _, status = os.waitpid(stage, 0)
            os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        os.close(held)
        os.close(tell)
        self._told = os.fdopen(told)
        self.stage = int(self._told.readline())

    def kill(self, whom: str) -> None:
        """`group`: all its processes; `process`: it alone, not its workers; `dvc`: the process that started it.

        `Ctrl-C` interrupts its group.
        """
        with suppress(ProcessLookupError):
            if whom in ("process", "dvc"):
                os.kill(self.stage if whom == "process" else self.dvc, signal.SIGKILL)
            else:
                os.killpg(self.stage, signal.SIGINT if whom == "Ctrl-C" else signal.SIGKILL)

    def wait(self) -> Ended:
        """Until its last process is gone; what still lives after its longest time is killed."""
        hung = not select.select([self._alive], [], [], self._longest)[0]
        if hung:
            self.kill("group")
            self.kill("dvc")
        os.waitpid(self.dvc, 0)
        line = self._told.readline()
        self._told.close()
        os.close(self._alive)
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return Ended(int(line) if line else None, said, time.monotonic() - self.started, hung)


def _become(project: Project, name: str, log: Path, prepare: Callable[[], None]) -> None:
    """In the child: be that stage or command, and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is this test's
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(project.folder)
        os.environ.update(environment(project.folder, name))
        sys.argv = ["knee-siglip", *COMMANDS[name][0].split()] if name in COMMANDS else [name]
        prepare()
        _let_interrupt()
        if name in COMMANDS:
            from knee_siglip.cli.main import main

            main()
        else:
            runpy.run_path(str(ROOT / "stages" / f"{name}.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for finish in AT_END:
            finish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_interrupt() -> None:
    """Ctrl-C is for the stage or command itself, not for what this test or Python does before and after it."""
    from knee_siglip.cli import main as cli
    from knee_siglip.core import running

    def run_stage(main: Callable[[], None]) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            real(main)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    real = running.run_stage
    running.run_stage = cli.run_stage = run_stage  # type: ignore[attr-defined]


def preload() -> None:
    """Load what stages and commands load first, once, for all children. Starts no thread."""
    import knee_siglip.cli.main
    import knee_siglip.cli.store.care
    import knee_siglip.cli.store.travel
    import knee_siglip.evaluation.evaluate
    import knee_siglip.inference.batch
    import knee_siglip.inference.rows
    import knee_siglip.report.validation.page
    import knee_siglip.report.write
    import knee_siglip.sample.dataset
    import knee_siglip.tracking.tracker
    import knee_siglip.training.run
    import knee_siglip.validation.validate  # noqa: F401
    from knee_siglip.validation.texts.language import foreign_language

    foreign_language("Schwere Arthrose des linken Knies mit Osteophyten.")  # loads its model


def load_too(file: Path) -> None:
    """Load the modules of `note_modules` here: what a child imports by itself costs more than what it is tested for."""
    for name in file.read_text().split():
        if name not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(name)


def note_modules(file: Path) -> None:
    """Write the names of all modules loaded so far."""
    file.write_text("\n".join(name for name in sys.modules if name.startswith(LOADED)))
