"""What people see of the metrics through DVC: a headline that fits the screen, and the rest by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WIDTH = 160

STAGE = """
from pathlib import Path
from knee_siglip.core.metrics_file import write_metrics
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.report.headline import evaluated

level = float(Path("level.txt").read_text())
names = [*evaluated(task_of(Params())), "val_loss", "best_epoch", "validation_errors"]
write_metrics(Path("reports/metrics.json"), {name: level + number / 1000 for number, name in enumerate(names)})
write_metrics(Path("reports/evaluation/metrics.json"), {"test.retrieval.image_to_text.mrr": level, "test.rows": 318})
"""

PIPELINE = {
    "stages": {
        "report": {
            "cmd": f"{sys.executable} stage.py",
            "deps": ["level.txt"],
            "outs": ["reports/evaluation/metrics.json"],
            "metrics": [{"reports/metrics.json": {"cache": False}}],
        }
    }
}


class Project:
    """A DVC repository whose one stage writes metrics files as ours do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": str(WIDTH)}
        (folder / "stage.py").write_text(STAGE)
        (folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
        (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def measure(self, level: float) -> None:
        (self.folder / "level.txt").write_text(str(level))
        self.run("dvc", "repro", "--quiet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One committed run, and another one in the workspace."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("git", "init", "--quiet")
    project.run("git", "config", "user.name", "A User")
    project.run("git", "config", "user.email", "user@example.org")
    project.run("dvc", "init", "--quiet")
    project.measure(0.5)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "first run")
    project.measure(0.75)
    return project


def test_the_pipeline_declares_the_headline_as_its_only_metrics() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    declared = [name for stage in stages.values() for entry in stage.get("metrics", []) for name in entry]
    assert declared == ["reports/metrics.json"]
    outs = {out for stage in stages.values() for out in stage["outs"]}
    assert {f"reports/{name}/metrics.json" for name in ("validation", "train", "evaluation", "inference")} <= outs


def test_metrics_diff_is_of_the_headline(project: Project) -> None:
    lines = project.run("dvc", "metrics", "diff").splitlines()
    assert len(lines) == 1 + 18
    assert all(line.startswith("reports/metrics.json ") for line in lines[1:])


def test_the_detailed_files_are_shown_and_compared_by_name(project: Project) -> None:
    shown = project.run("dvc", "metrics", "show", "reports/evaluation/metrics.json")
    assert "test.retrieval.image_to_text.mrr" in shown
    difference = project.run("dvc", "metrics", "diff", "--targets", "reports/evaluation/metrics.json")
    (line,) = difference.splitlines()[1:]
    assert line.split() == [
        "reports/evaluation/metrics.json",
        "test.retrieval.image_to_text.mrr",
        "0.5",
        "0.75",
        "0.25",
    ]


def test_experiments_fit_the_screen_with_the_kappa_first(project: Project) -> None:
    lines = project.run("dvc", "exp", "show", "--no-pager", "--only-changed").splitlines()
    assert max(map(len, lines)) <= WIDTH
    header = next(line.split() for line in lines if "Experiment" in line)
    assert header[:4] == ["Experiment", "Created", "quadratic_weighted_kappa", "quadratic_weighted_kappa_ci_low"]
