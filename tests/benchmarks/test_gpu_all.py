"""`benchmarks/gpu_all.py` waits for a machine with a GPU; until then its every phase runs at toy sizes."""

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from claims import Claim  # noqa: E402
from gpu_phases.runner import Phase, Report  # noqa: E402
from gpu_wheels import LOCKED, THERE, requirements  # noqa: E402

EXACT = {  # goals that hold at any size
    "values that a skipped step changes",
    "out of memory: the batch was divided",
    "out of memory: loss beside undivided",
    "resumed beside uninterrupted",
    "gradients in pieces beside undivided, none",
    "gradients in pieces beside undivided, bf16",
    "bf16 gradients beside float32",
}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu_all.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "gpu_all.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_phase_runs_at_toy_sizes(tmp_path: Path) -> None:
    done = run("--toy", "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "toy sizes on a CPU: these figures mean nothing"
    lines = {line["phase"]: line for line in lines_of(tmp_path)}
    has_peer = find_spec("open_clip") is not None
    for name, line in lines.items():
        assert line["status"] == ("ok" if has_peer or "open_clip" not in name else "skipped"), line
    goals = {goal["name"]: goal["met"] for line in lines.values() for goal in line.get("goals", [])}
    assert {name for name in EXACT if goals[name]} == EXACT
    assert all(name in done.stdout for name in EXACT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_one_sentence(tmp_path: Path) -> None:
    done = run("--output", tmp_path / "new")
    assert done.returncode == 2
    assert done.stderr == "this benchmark needs an NVIDIA GPU; --toy runs its code without one\n"
    assert not list(tmp_path.iterdir())


def test_a_phase_that_fails_or_comes_too_late_leaves_a_line_and_the_rest_runs(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu_all.jsonl")

    def fail() -> dict:
        raise RuntimeError("no kernel")

    def goals(own: dict, results: dict) -> list[Claim]:
        return [Claim("speed", results["good"]["speed"], ">=", own["speed"] - 1)]

    phases = [
        Phase("broken", 1, fail),
        Phase("too long", 1e9, dict),
        Phase("of a peer", 1, dict, package="no_such_package"),
        Phase("good", 1, lambda: {"speed": 2}, goals),
    ]
    report.run(phases, budget=1e8, started=0.0)
    assert [(line["phase"], line["status"]) for line in lines_of(tmp_path)] == [
        ("broken", "error"),
        ("too long", "skipped"),
        ("of a peer", "skipped"),
        ("good", "ok"),
    ]
    assert lines_of(tmp_path)[0]["error"] == "RuntimeError: no kernel"
    assert not report.all_met
    assert report.claims[0].met


def test_a_skipped_phase_fails_the_run_only_where_it_has_a_goal(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu_all.jsonl")
    report.run([Phase("only a figure", 1, dict)], budget=-1e9, started=0.0)
    assert report.all_met
    report.run([Phase("a goal", 1, dict, lambda _, __: [])], budget=-1e9, started=0.0)
    assert not report.all_met


def test_a_missed_goal_is_a_failure_and_a_broken_goal_keeps_the_figures(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu_all.jsonl")
    report.run([Phase("slow", 0, lambda: {"x": 1}, lambda own, _: [Claim("x", own["x"], ">=", 2)])], 1e9, 0.0)
    assert not report.failures
    assert not report.all_met
    report.run([Phase("odd", 0, lambda: {"x": 1}, lambda own, _: [Claim("y", own["y"], ">=", 2)])], 1e9, 0.0)
    assert lines_of(tmp_path)[1]["figures"] == {"x": 1}
    assert lines_of(tmp_path)[1]["status"] == "error"


def test_the_wheels_have_the_locked_versions() -> None:
    wanted = requirements((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    assert any(requirement.startswith("transformers==") for requirement in wanted)
    assert all(requirement.count("==") == 1 for requirement in wanted)


def test_what_the_phases_import_is_a_wheel_or_known_to_be_there() -> None:
    """A new dependency of the package would end a run on a machine without a network at its first import."""
    code = "import sys; sys.path[:0] = ['benchmarks', 'src']; import gpu_phases.phases as _; print(*" + (
        "{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = [
        Path(line)
        for line in done.stdout.splitlines()
        if Path(line).is_relative_to(ROOT) and "site-packages" not in line
    ]
    imported = set()
    for statement in (statement for path in own for statement in ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            imported.add(str(statement.module).split(".")[0])
    distributions = packages_distributions()
    needed = {distributions[name][0] for name in imported & distributions.keys()} - {"knee-siglip"}
    assert needed - {*LOCKED} == THERE
