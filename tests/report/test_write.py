"""The report stage: from files to files, in seconds, without a model or the libraries that run one."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import write_metrics
from knee_siglip.params.files import load_params
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.outputs import write_results
from report.cases.conftest import make_embeddings, make_predictions

ROOT = Path(__file__).parents[2]
STAGE = ROOT / "stages" / "report.py"
EVALUATION = Path(__file__).parent / "evaluation" / "results"
ROW = {"csv_row": 2, "img_path": "a.png", "impression": "Normal.", "split": "train", "patient_id": "", "text": "normal"}
IMAGE = {"image_file": "data/a.png", "image_id": "", "width": 0, "height": 0}
TABLE = pd.DataFrame(ROW | IMAGE, [2])
ISSUES = [Issue("error", "unreadable_image", 2, "a.png", "a.png cannot be read")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder after validate, train and evaluate."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("tracking: {mlflow: none, wandb: none}\n")
    shutil.copytree(EVALUATION, tmp_path / "reports/evaluation")
    predictions = make_predictions()
    predictions.to_parquet(tmp_path / "reports/evaluation/predictions.parquet")
    make_embeddings(predictions).to_parquet(tmp_path / "reports/evaluation/embeddings.parquet")
    write_metrics(tmp_path / "reports/train/metrics.json", {"best.val_loss": 1.5, "best_epoch": 3})
    write_results(tmp_path / "reports/validation", TABLE, ISSUES, {"rows": 1}, "kl_grade")
    return tmp_path


def run_stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(STAGE), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, text=True, capture_output=True)


def failure_of_stage() -> str:
    """What the stage says after a failed validation, without the seconds that a process takes to start."""
    with pytest.raises(UserError) as failure:
        runpy.run_path(str(STAGE))["fail_with_page"](load_params())
    return str(failure.value)


def test_the_stage_writes_all_pages_and_the_headline_without_torch(project: Path) -> None:
    done = run_stage()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a.png cannot be read" in (project / "reports/validation/index.html").read_text()
    assert "ranks a right text first for 80 of 100" in (project / "reports/evaluation/index.html").read_text()
    assert "0.png" in (project / "reports/evaluation/cases.html").read_text()
    said = [line for line in done.stdout.splitlines() if line]
    assert len(said) == 1
    assert said[0].startswith("Verdict: The model ranks a right text first for 80 of 100")
    assert said[0].endswith("All metrics: reports/evaluation/index.html")
    headline = json.loads((project / "reports/metrics.json").read_text())
    assert (headline["quadratic_weighted_kappa"], headline["val_loss"], headline["validation_errors"]) == (0.9, 1.5, 1)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "pandas" in imported
    assert imported.isdisjoint({"torch", "transformers", "mlflow", "wandb"})


def test_after_a_failed_validation_the_stage_draws_its_page_and_fails(project: Path) -> None:
    shutil.rmtree(project / "reports/evaluation")
    done = run_stage("--failed-validation")
    assert done.returncode == 1
    assert "error: validation failed; see reports/validation/index.html" in done.stderr
    assert "1 error: nothing was trained." in (project / "reports/validation/index.html").read_text()
    assert not (project / "reports/metrics.json").exists()


def test_the_page_of_a_run_whose_folder_dvc_deletes_is_kept_and_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    monkeypatch.delenv("KNEE_SIGLIP_STORE")
    for name, value in {"DVC_ROOT": str(root), "DVC_EXP_NAME": "lofty-knee"}.items():
        monkeypatch.setenv(name, value)
    kept = root / ".store/failed/lofty-knee/index.html"
    for message in ("a.png cannot be read", "a.png is empty"):  # the same experiment may fail again
        write_results(Path("reports/validation"), TABLE, [replace(ISSUES[0], message=message)], {}, "kl_grade")
        assert failure_of_stage() == f"validation failed; see {kept}"
        assert message in kept.read_text()
        assert message in kept.with_name("issues.csv").read_text()
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert failure_of_stage() == "validation failed; see reports/validation/index.html"


def test_a_validation_that_left_nothing_has_no_page(project: Path) -> None:
    shutil.rmtree(project / "reports/validation")
    assert failure_of_stage() == "validation failed before it checked anything"
