"""A short run of `python -m tests.chaos`, in a process of its own: it forks, which a process with threads must not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


NUMBERS = "1,3,4,5,7,13,14,57"
"""Of seed 3: eight kinds, all but one of them on the quickest stage."""


def test_nothing_is_lost_or_wrong_in_silence() -> None:
    parts = ("--parts", "backbones,validate,preprocess,train")
    command = (sys.executable, "-m", "tests.chaos", "--numbers", NUMBERS, "--seed", "3", "--jobs", "1", *parts)
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 8 |" in done.stdout
