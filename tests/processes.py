"""Commands in a project's folder, and what the tests ask of processes that are not their own children."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from knee_siglip.cli import main as cli


def run_in(folder: Path, *command: str) -> str:
    """Output of a command that must succeed, with the tests' own git, dvc and Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def twice_at_once(folder: Path, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and output of two processes that run the same `knee-siglip` command, the lower code first.

    They are forked, so that they need not import again; the caller must hold no connection to a database.
    """
    forking = multiprocessing.get_context("fork")
    start, outputs = forking.Barrier(2), [folder / f"said_{number}.txt" for number in range(2)]
    both = [forking.Process(target=_command, args=(start, output, arguments)) for output in outputs]
    for process in both:
        process.start()
    for process in both:
        process.join()
    return sorted((process.exitcode or 0, output.read_text()) for process, output in zip(both, outputs, strict=True))


def _command(start: Barrier, output: Path, arguments: tuple[str, ...]) -> None:
    torch.set_num_threads(1)  # those of the parent did not come along
    with output.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        sys.argv = ["knee-siglip", *arguments]
        start.wait()
        cli.main()


def holds_files(pid: int) -> bool:
    """False once a process has ended so far that it can write no more.

    A lock is let go a moment before the kernel calls the process ended, but not before it holds no file.
    """
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, PermissionError):  # without memory it belongs to root
        return False
