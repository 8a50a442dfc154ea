"""What the tests ask of processes that are not their own children."""

from pathlib import Path


def holds_files(pid: int) -> bool:
    """False once a process has ended so far that it can write no more.

    A lock is let go a moment before the kernel calls the process ended, but not before it holds no file.
    """
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, PermissionError):  # without memory it belongs to root
        return False
