"""`knee-siglip release` on a small git and DVC project with a registry of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from knee_siglip.core import paths
from knee_siglip.core.files import sha256
from processes import run_in
from toy_checkpoint import write_checkpoint

ARTIFACTS = f"artifacts:\n  model:\n    path: {paths.BEST_MODEL}\n    type: model\n"
SUBGROUPS = """split,column,group,n,patients,suppressed,metric,value,low,high,difference,p_holm,flagged
test,side,left,35,35,False,contrastive_accuracy,0.9,0.85,0.95,0.1,0.01,True
test,view,pa,2,1,True,contrastive_accuracy,,,,,,False
"""
WRONG = {"worse": 0.6, "first": 0.3, "better": 0.05}
"""Commits, and the share of test rows that each one's model is wrong about."""

Run = Callable[..., tuple[int, str, str]]


def predictions(wrong: float) -> pd.DataFrame:
    """Two images a patient, without grades."""
    right = np.random.default_rng(0).random(80) >= wrong
    rows = range(80)
    table = pd.DataFrame({"img_path": [f"{row}.png" for row in rows], "image_id": [f"{row:064x}" for row in rows]})
    table = table.assign(split="test", text="a text", contrastive_batch=0)
    table["patient_id"] = [f"P{row // 2}" for row in rows]
    for direction in ("image_to_text", "text_to_image"):
        table[f"contrastive_{direction}"] = table[f"{direction}_recall_at_1"] = right.astype(float)
    return table


def write_results(folder: Path, wrong: float, make_model: Callable) -> None:
    """What train and evaluate leave of a model."""
    model, report = folder / paths.BEST_MODEL, folder / paths.EVALUATION_REPORT
    write_checkpoint(make_model(seed=int(wrong * 100)), model)
    (report / "tables").mkdir(parents=True, exist_ok=True)
    (report / "tables/subgroups.csv").write_text(SUBGROUPS)
    predictions(wrong).to_parquet(folder / paths.PREDICTIONS)
    value = {"contrastive_accuracy": 1 - wrong, "contrastive_accuracy_ci_low": 0.1, "contrastive_accuracy_ci_high": 0.9}
    value["retrieval"] = {"image_to_text": {"recall_at_1": 0.5, "recall_at_1_ci_units": 9}}
    (report / "metrics.json").write_text(json.dumps({"test": value | {"calibration": {"ece": 0.1}}}))
    params = {"data": {"csv": "/clinic-a/knees.csv"}, "model": {"vision": "/clinic-a/encoder", "text": "small"}}
    counts = {"rows": 80, "patients": 40, "distinct_texts": 1, "graded_rows": 0}
    facts = {
        "params": params | {"image_size": 28, "seed": 0, "task": {"subject": "knee", "labels": {}}},
        "model_sha256": sha256(model),
        "data_hash": "d" * 64,
        "checkpoint": {"parameters": 1000, "trained_with": {"torch": "2.13.0"}},
        "counts": {"test": counts},
    }
    (report / "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit for each of `WRONG`, tagged with its name."""
    from toys import toy_model

    folder = tmp_path_factory.mktemp("project")
    run_in(folder, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "A User"), ("user.email", "user@example.org")):
        run_in(folder, "git", "config", key, value)
    run_in(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(ARTIFACTS)
    (folder / "params.yaml").write_text("tracking: {wandb: none}\n")
    (folder / ".gitignore").write_text(".store\nmlflow.db*\nmlartifacts\n")
    for name, wrong in WRONG.items():
        write_results(folder, wrong, toy_model)
        run_in(folder, "git", "add", "--all")
        run_in(folder, "git", "commit", "-qm", name)
        run_in(folder, "git", "tag", name)
    return folder


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, knee_siglip: Run, project: Path) -> Callable[..., tuple[int, str]]:
    """Runs the command in the project; returns exit code and output."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        code, out, error = knee_siglip("release", *arguments)
        return code, out + error

    return run


def test_the_champion_is_replaced_by_a_better_model_or_by_force_only(release, project, tmp_path):
    code, said = release("first")
    assert (code, "the champion: there was none before" in said) == (0, True), said
    card = project / "MODEL_CARD.md"
    first = card.read_text()
    assert "clinic-a" not in first
    assert "| contrastive_accuracy | 0.700 | 0.100 to 0.900 |" in first
    assert "side left | 35 | 35 | contrastive_accuracy | 0.900" in first
    assert "too few for a figure: view pa (2 images of 1 patients)" in first
    assert "| retrieval.image_to_text.recall_at_1 | 0.500 | too few patients |" in first

    code, said = release("worse")
    assert (code, "not the champion: against version 1 surely worse by contrastive_accuracy" in said) == (1, True), said
    assert card.read_text() == first
    code, said = release("better", "--seed-of", "worse")  # seeds that differ so much say nothing
    assert (code, "not the champion: against version 1 surely better by none" in said) == (1, True), said
    code, said = release("better")
    assert (code, "the champion: against version 1 surely better by" in said) == (0, True), said
    assert release("better") == (0, "better is the champion already: knee-siglip version 3\n")

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    champion = client.get_model_version_by_alias("knee-siglip", "champion")
    assert (str(champion.version), champion.tags["experiment"]) == ("3", "better")
    assert champion.tags["runs"] == champion.tags["commit"]
    assert champion.description == card.read_text()
    run_in(project, "dvc", "artifacts", "get", ".", "model", "--stage", "champion", "-o", str(tmp_path / "had.pt"))
    assert sha256(tmp_path / "had.pt") == champion.tags["sha256"]
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    loaded = mlflow.pyfunc.load_model("models:/knee-siglip@champion")  # checks its reference
    assert loaded.predict(loaded.input_example)["status"].tolist() == ["ok"]

    client.delete_model_version_tag("knee-siglip", "3", "runs")
    assert "not made by knee-siglip release" in release("worse")[1]
    assert release("worse", "--force", "a demonstration")[0] == 0
    champion = client.get_model_version_by_alias("knee-siglip", "champion")
    assert (str(champion.version), champion.tags["forced"]) == ("2", "a demonstration")


@pytest.mark.parametrize(
    ("rev", "said"),
    [
        ("workspace", "name a commit or experiment"),
        ("nowhere", "nowhere is no git revision"),
    ],
)
def test_what_cannot_be_released_is_said_in_a_sentence(release, rev, said):
    code, output = release(rev)
    assert (code, said in output) == (2, True), output
