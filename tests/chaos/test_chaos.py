"""A short run of `python -m tests.chaos`, in a process of its own: it forks, which a process with threads must not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_or_wrong_in_silence() -> None:
    parts = ("--parts", "backbones,validate,preprocess,train")
    command = (sys.executable, "-m", "tests.chaos", "--trials", "8", "--seed", "3", "--jobs", "1", *parts)
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 8 |" in done.stdout
