"""Commands in a project's folder, and what the tests ask of processes that are not their own children."""

import os
import subprocess
import sys
from pathlib import Path


def run_in(folder: Path, *command: str) -> str:
    """Output of a command that must succeed, with the tests' own git, dvc and Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def holds_files(pid: int) -> bool:
    """False once a process has ended so far that it can write no more.

    A lock is let go a moment before the kernel calls the process ended, but not before it holds no file.
    """
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, PermissionError):  # without memory it belongs to root
        return False
