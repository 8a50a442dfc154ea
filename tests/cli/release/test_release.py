"""`knee-siglip release` on a small project of git and DVC with two models that were trained there."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.core.files import sha256
from knee_siglip.encoders.backbones import write_backbones
from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.params.sections import Params
from knee_siglip.store.pixels import build_cache
from knee_siglip.tables.manifest import write_manifest
from knee_siglip.training import run as training
from knee_siglip.training.run import TrainFiles, train
from processes import run_in, twice_at_once
from toys import open_without_dvclive

ARTIFACTS = f"artifacts:\n  model:\n    path: {paths.BEST_MODEL}\n    type: model\n"
STEPS = {"short": 1, "long": 60}
"""Commits, and how long the model of each was trained."""

SIZE = 28
SPLITS = {"train": 32, "val": 8, "test": 64}
WORDS = ("normal", "mild", "moderate", "severe")

Run = Callable[..., tuple[int, str, str]]


NAME = "St. John's knees"
"""Of the registered model: an apostrophe ends a string in MLflow's queries."""


def make_images(folder: Path) -> pd.DataFrame:
    """The manifest of two images a patient; each of four brightnesses has a text of its own. One patient is seen PA."""
    rng, rows = np.random.default_rng(0), []
    for number, split in enumerate(split for split, count in SPLITS.items() for _ in range(count)):
        path, bright = folder / f"{number}.png", 50 * (number % 4)
        Image.fromarray(rng.integers(bright, bright + 60, (SIZE, SIZE), dtype=np.uint8)).save(path)
        row = {"img_path": path.name, "split": split, "patient_id": f"P{number // 2}", "image_file": str(path)}
        row |= {"image_id": hashlib.sha256(path.read_bytes()).hexdigest(), "width": SIZE, "height": SIZE, "bits": 8}
        last = number // 2 == sum(SPLITS.values()) // 2 - 1
        rows.append(row | {"text": f"{WORDS[number % 4]} knee", "view": "pa" if last else "ap", "flags": ""})
    return pd.DataFrame(rows)


def prepare(folder: Path) -> tuple[TrainFiles, EvaluateFiles]:
    """Images, their cache and the small encoders."""
    manifest, cache, backbones = folder / "manifest.parquet", folder / "cache/cache.json", folder / "backbones"
    table = make_images(folder)
    write_manifest(table, manifest)
    build_cache(table, Transform(SIZE, "pad", "none"), cache.with_name("index.parquet"), cache)
    write_backbones(Params().model, backbones)
    models = folder / "final_model.pt", folder / "reports"
    return (
        TrainFiles(manifest, cache, backbones, paths.BEST_MODEL, *models),
        EvaluateFiles(manifest, cache, paths.BEST_MODEL, backbones, paths.EVALUATION_REPORT),
    )


def params_of(steps: int) -> Params:
    return Params.model_validate(
        {
            "data": {"csv": "/clinic-a/knees.csv"},
            "model": {"vision": "/clinic-a/encoder"},
            "image_size": SIZE,
            "train": {"batch_size": 8, "steps": steps, "mixed_precision": "none"},
            "evaluate": {"batch_size": 16, "robustness": False, "gallery": 0, "subgroups": ["view"]},
            "tracking": {"mlflow": "none", "wandb": "none"},
        }
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Path:
    """A commit for each of `STEPS`, tagged with its name."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    run_in(folder, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "A User"), ("user.email", "user@example.org")):
        run_in(folder, "git", "config", key, value)
    run_in(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(ARTIFACTS)
    (folder / "params.yaml").write_text(f'tracking: {{wandb: none, project_name: "{NAME}"}}\n')
    (folder / ".gitignore").write_text(".store\nmlflow.db*\nmlartifacts\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KNEE_SIGLIP_STORE", str(folder / ".store"))
        patch.setattr(training, "open_tracker", open_without_dvclive)
        for_training, for_evaluation = prepare(tmp_path_factory.mktemp("data"))
        for name, steps in STEPS.items():
            train(params_of(steps), for_training, "cpu")
            evaluate(params_of(steps), for_evaluation, "cpu")
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


def test_the_champion_is_replaced_by_a_better_model_or_by_force_only(release, project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    (code, said), (_, also_said) = twice_at_once(tmp_path, "release", "short")
    assert (code, "the champion: there was none before" in said) == (0, True), said
    assert also_said.startswith(("error: another process is releasing a model", "short is the champion already"))
    card = project / "MODEL_CARD.md"
    first = card.read_text()
    measured = run_in(project, "git", "show", f"short:{paths.EVALUATION_REPORT}/metrics.json")
    test = json.loads(measured)["test"]["retrieval"]["image_to_text"]
    figures = [f"{test[f'recall_at_1{end}']:.3f}" for end in ("", "_ci_low", "_ci_high")]
    assert "| retrieval.image_to_text.recall_at_1 | {} | {} to {} |".format(*figures) in first
    assert "too few for a figure: view pa (2 images of 1 patients)" in first
    assert "clinic-a" not in first

    code, said = release("long", "--seed-of", "short")  # seeds that differ so much say nothing
    assert (code, "not the champion: against version 1 surely better by none" in said) == (1, True), said
    assert card.read_text() == first
    code, said = release("long")
    assert (code, "the champion: against version 1 surely better by" in said) == (0, True), said
    assert release("long") == (0, f"long is the champion already: {NAME} version 2\n")
    second = card.read_text()
    code, said = release("short")
    assert (code, "not the champion: against version 2 surely worse by" in said) == (1, True), said
    assert card.read_text() == second

    uri = f"sqlite:///{project}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert (str(champion.version), champion.tags["experiment"]) == ("2", "long")
    assert champion.tags["runs"] == champion.tags["commit"]
    assert champion.description == second
    had = tmp_path / "had.pt"
    by_stage = ["dvc", "artifacts", "get", ".", "model", "--stage", "champion"]
    for get in (by_stage, champion.tags["get"].split()):
        run_in(project, *get, "--force", "-o", str(had))
        assert sha256(had) == champion.tags["sha256"]
    assert champion.tags["get"].replace(" . ", " REPOSITORY ") in second
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")  # checks its reference
    assert loaded.predict(loaded.input_example)["status"].tolist() == ["ok"]

    client.set_model_version_tag(NAME, "2", "runs", "0" * 40)
    assert "this clone lacks" in release("short")[1]
    client.delete_model_version_tag(NAME, "2", "runs")
    assert "not made by knee-siglip release" in release("short")[1]
    code, said = release("short", "--force", "a demonstration")
    assert code == 0, said
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert (str(champion.version), champion.tags["forced"]) == ("1", "a demonstration")
    run_in(project, *by_stage, "--force", "-o", str(had))
    assert sha256(had) == champion.tags["sha256"]  # of a model that was the champion before


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
