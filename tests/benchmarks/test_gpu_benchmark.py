"""`benchmarks/gpu.py` waits for a machine with a GPU; until then its every path runs at toy sizes."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "benchmarks/gpu.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_every_path_runs_at_toy_sizes_and_leaves_no_result(tmp_path):
    result = tmp_path / "gpu.json"
    done = run("--toy", "--output", result)
    assert done.returncode == 0, done.stderr
    assert "these figures mean nothing" in done.stdout.splitlines()[-1]
    assert not result.exists()
    for way in ("ours", "plain fp32", "plain fp16", "compile", "gradient checkpointing", "prefetch 0"):
        assert f"28 px, {way}: pairs_per_second" in done.stdout
    assert "one step of 12 pairs: loss and gradients finite: 1  (target >= 1) met" in done.stdout
    for precision in ("float32", "bf16"):
        (claim,) = (line for line in done.stdout.splitlines() if line.startswith(f"{precision}: gradients"))
        assert claim.endswith(" met")
    has_peer = find_spec("open_clip") is not None
    assert ("28 px, open_clip: pairs_per_second" in done.stdout) == has_peer
    assert ("open_clip is not installed" in done.stdout) == (not has_peer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_one_sentence(tmp_path):
    done = run("--output", tmp_path / "gpu.json")
    assert done.returncode == 2
    assert done.stderr == "this benchmark needs an NVIDIA GPU; --toy runs its code without one\n"
    assert not done.stdout
    assert not list(tmp_path.iterdir())
