"""The real pipeline through DVC, on a miniature in a clone of its own: what a user types on the first day."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from ruamel.yaml import YAML

from importing_layouts import gornale_kl

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from dvc_queue import queue_states, run_queue  # noqa: E402
from tracked_values import (  # noqa: E402
    WandbRun,
    differing,
    differing_headline,
    headline,
    mlflow_client,
    mlflow_curve,
    mlflow_runs,
    wandb_runs,
    written,
)

MINIATURE = {
    "sample": {"patients": 41},  # of 40 no test study has a lateral view
    "train": {"epochs": 12, "batch_size": 16},
    "tracking": {"experiment_name": "miniature"},
}
IMAGE_SIZE, OTHER_SIZE = 112, 84


class Clone:
    """A clone with the environment a user's shell would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(folder / "src")}
        self.env["SHELL"] = "/bin/sh"  # which DVC starts the stages with; some shells stay their parent
        for name in ("KNEE_SIGLIP_STORE", "MLFLOW_TRACKING_URI", "WANDB_MODE", "PYTHONDONTWRITEBYTECODE"):
            self.env.pop(name, None)

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=570)
        output = done.stdout + done.stderr
        assert done.returncode == code, output[-6000:]
        return output

    def repro(self, *arguments: str, code: int = 0) -> str:
        return self.run("dvc", "repro", *arguments, code=code)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-qm", message)

    def metrics(self, stage: str) -> dict:
        return json.loads((self.folder / "reports" / stage / "metrics.json").read_text())


def _copy_tree(folder: Path) -> None:
    """The working tree as git sees it, so that the test also covers what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Clone:
    """A clone after its first `dvc repro`, committed. No test changes it."""
    folder = tmp_path_factory.mktemp("clone")
    _copy_tree(folder)
    shutil.copy(mlflow_database, folder / "mlflow.db")
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    params["image_size"] = IMAGE_SIZE
    for section, values in MINIATURE.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")
    clone = Clone(folder)
    clone.run("git", "init", "-q")
    clone.run("git", "config", "user.name", "A User")
    clone.run("git", "config", "user.email", "user@example.org")
    clone.commit("miniature")
    assert "the run continues without it" not in clone.repro()
    clone.commit("first run")
    return clone


@pytest.fixture
def own(clone: Clone, tmp_path: Path) -> Clone:
    """A copy of the clone with all that the first run left, for one test to change."""
    shutil.copytree(clone.folder, tmp_path / "own", symlinks=True)
    return Clone(tmp_path / "own")


@pytest.fixture
def untracked(own: Clone) -> Clone:
    """Without MLflow and W&B, whose processes take longer than the stages of a miniature, and with a short training."""
    path, yaml = own.folder / "params.yaml", YAML()
    params = yaml.load(path.read_text())
    params["tracking"].update(mlflow="none", wandb="none")
    params["train"]["epochs"] = 1
    yaml.dump(params, path)
    own.repro("params")
    own.commit("no trackers")
    return own


def test_every_stage_leaves_its_files(clone):
    for name in (
        "data/sample/train.csv",
        "data/validated/manifest.parquet",
        "data/cache/index.parquet",
        "models/backbones/vision/model.safetensors",
        "models/best_model.pt",
        "models/final_model.pt",
        "reports/train/metrics.json",
        "reports/train/live/plots/metrics/train/loss.tsv",
        "reports/train/live/plots/metrics/train/step_loss.tsv",
        "reports/train/live/plots/metrics/val/contrastive_accuracy.tsv",
        "reports/evaluation/metrics.json",
        "reports/evaluation/predictions.parquet",
        "reports/evaluation/embeddings.parquet",
        "reports/evaluation/studies.parquet",
        "reports/evaluation/index.html",
        "reports/evaluation/cases.html",
        "reports/evaluation/tables/subgroups.csv",
        "reports/validation/index.html",
        "reports/metrics.json",
        "reports/inference/results.csv",
        "reports/inference/studies.csv",
        "reports/inference/embeddings.npy",
    ):
        assert (clone.folder / name).stat().st_size > 0, name


def test_views_of_one_knee_are_evaluated_and_inferred_as_one_study(clone):
    evaluated = pd.read_parquet(clone.folder / "reports/evaluation/studies.parquet").set_index("study_id")
    inferred = pd.read_csv(clone.folder / "reports/inference/studies.csv").set_index("study_id")
    assert set(evaluated["view"]) == {"ap", "ap+lateral"}
    assert evaluated["view"].to_dict() == inferred["view"].to_dict()
    assert (evaluated["images"] == 1 + (evaluated["view"] == "ap+lateral")).all()


def test_nothing_generated_is_left_for_git_to_find(clone):
    assert clone.run("git", "status", "--porcelain") == ""
    kept = clone.run("git", "ls-files", "data", "models", "reports").split()
    assert {Path(name).name for name in kept} == {".gitignore", "metrics.json", "no_external.csv"}


def test_a_second_repro_does_nothing(clone):
    assert "Data and pipelines are up to date." in clone.repro()


def test_trackers_hold_what_metrics_json_holds(clone):
    model, evaluation = _runs_of(clone)
    assert model is evaluation
    assert _differing(clone, model, evaluation) == []


def test_predictions_and_results_grade_by_the_prompts_of_today(own):
    """Swap two grades' prompts after the training: evaluation and inference both follow, and so do the trackers."""
    path, yaml = own.folder / "params.yaml", YAML()
    params = yaml.load(path.read_text())
    prompts = dict(yaml.load((own.folder / "tasks/knee.yaml").read_text())["label_prompts"])
    prompts["0"], prompts["4"] = prompts["4"], prompts["0"]
    params["evaluate"]["label_prompts"] = prompts
    yaml.dump(params, path)
    assert "Stage 'train' didn't change" in own.repro()
    predictions = pd.read_parquet(own.folder / "reports/evaluation/predictions.parquet")
    results = pd.read_csv(own.folder / "reports/inference/results.csv")
    both = predictions.merge(results, on="img_path", suffixes=("_evaluated", "_inferred"))
    assert len(both) == len(results)
    assert (both["kl_grade_predicted_evaluated"] == both["kl_grade_predicted_inferred"]).all()
    model, evaluation = _runs_of(own)
    assert model is not evaluation  # the evaluation with other prompts is a run of its own
    assert _differing(own, model, evaluation) == []

    assert "Running stage 'evaluate'" not in own.run("git", "checkout", "params.yaml") + own.repro()
    assert len(mlflow_runs(own.folder)) == len(wandb_runs(own.folder)) == 2
    model, evaluation = _runs_of(own)
    assert model is evaluation
    assert _differing(own, model, evaluation) == []


def test_a_style_sheet_reruns_the_report_alone(own):
    with (own.folder / "src/knee_siglip/report/html/templates/style.css.j2").open("a") as file:
        file.write("/* changed */\n")
    assert list(json.loads(own.run("dvc", "status", "--json"))) == ["report"]


def test_a_training_goes_on_after_dvc_itself_was_killed(own, clone):
    """No orphan trains on, the next repro goes on at the last step, and ends as if nothing had happened."""
    retrain = ("dvc", "repro", "--single-item", "train")
    (own.folder / "dvc.lock").unlink()
    shutil.rmtree(own.folder / ".dvc" / "cache" / "runs")  # or DVC would take the outs that it has
    dvc = subprocess.Popen(retrain, cwd=own.folder, env=own.env)
    runs = own.folder / ".store" / "runs"
    _wait_for(lambda: list(runs.glob("*/best_model.pt")))  # the first of twelve epochs is over
    dvc.kill()
    dvc.wait()
    _wait_for(lambda: list(runs.glob("*/*.sha256")))  # the trainer was told, and has saved its state
    assert "resuming at step" in own.run(*retrain)
    assert own.metrics("train") == clone.metrics("train")
    assert list(runs.iterdir()) == []
    model, evaluation = _runs_of(own)
    assert model is not evaluation  # DVC knows the evaluation of this model: it belongs to the first training
    assert _differing(own, model, evaluation) == []
    assert model.curves == _runs_of(clone)[0].curves  # no step is missing or there twice


def test_a_bit_that_flips_behind_dvcs_back_is_named_with_a_way_out_that_works(own):
    manifest = own.folder / "data/validated/manifest.parquet"
    before, data = manifest.stat(), bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data)
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    output = own.repro("--single-item", "--force", "preprocess", code=255)
    assert "data/validated/manifest.parquet is not what the stage validate wrote" in output
    assert "Traceback" not in output
    manifest.unlink()
    own.run("dvc", "checkout", "data/validated/manifest.parquet")
    own.repro("--single-item", "--force", "preprocess")


def test_queued_experiments_of_another_size_share_pixels_and_rerun_only_what_depends_on_it(own):
    """Two need the same images in a size that the store lacks: they are decoded once. A third has a leak."""
    folder, images = own.folder / ".store" / "pixels", _images(own)
    before = {file: file.stat().st_size for file in folder.rglob("*.pixels")}
    for epochs, name, target in ((1, "whole", "report"), (2, "trained", "train")):
        changes = [f"image_size={OTHER_SIZE}", f"train.epochs={epochs}", "tracking.experiment_name=null"]
        options = [option for change in changes for option in ("-S", change)]
        own.run("dvc", "exp", "run", "--queue", *options, "--name", name, target)
    row, leak = _leak(own)
    own.run("dvc", "exp", "run", "--queue", *leak, "--name", "leaky")
    run_queue(own.folder, lambda: own.run("dvc", "queue", "start", "--jobs", "2"))
    assert queue_states(own.folder) == {"whole": "Success", "trained": "Success", "leaky": "Failed"}
    added = {file: file.stat().st_size for file in folder.rglob("*.pixels") if file not in before}
    assert before.items() <= {file: file.stat().st_size for file in before}.items()
    assert sum(added.values()) == OTHER_SIZE**2 * images
    named = re.findall(r"(?:all in|see) (/\S+)", own.run("dvc", "queue", "logs", "leaky"))
    assert [Path(name).name for name in named] == ["issues.csv", "index.html"]
    assert all(f"patient {row['patient_id']} is in" in Path(name).read_text() for name in named)

    output = own.run("dvc", "queue", "logs", "whole")
    for stage in ("sample", "validate", "backbones"):
        assert f"Stage '{stage}' didn't change" in output
        assert f"Running stage '{stage}'" not in output
    for stage in ("preprocess", "train", "evaluate", "report"):
        assert f"Running stage '{stage}'" in output
    own.run("dvc", "exp", "apply", "whole")
    assert list(json.loads(own.run("dvc", "status", "--json"))) == ["infer"]  # which was not asked for
    assert json.loads((own.folder / "data/cache/cache.json").read_text())["image_size"] == OTHER_SIZE
    assert "contrastive_accuracy" in own.run("dvc", "metrics", "diff")
    assert {"whole", "trained"} <= set(re.findall(r"\w+", own.run("dvc", "exp", "show", "--csv")))
    own.run("dvc", "plots", "diff", "HEAD", "--out", "plots_page")
    assert (own.folder / "plots_page" / "index.html").is_file()

    model, evaluation = _runs_of(own)  # of the applied experiment
    assert model is evaluation
    assert model.tags["DVC_EXP_NAME"] == "whole"
    assert _differing(own, model, evaluation) == []
    (run,) = mlflow_runs(own.folder, DVC_EXP_NAME="trained")
    values = written(own.folder, ("train",), rev="trained")
    (in_wandb,) = [run.summary for run in wandb_runs(own.folder).values() if run.name == "trained"]
    assert differing(values, run.data.metrics) == differing(values, in_wandb) == []
    _check_kept_model(own, run)


def _check_kept_model(clone: Clone, run: Any) -> None:
    """A queued run's folder is gone: its checkpoint is where MLflow says, and comes by the command in its tag."""
    client = mlflow_client(clone.folder)
    (model,) = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=1
    )
    kept = Path(urlsplit(model.artifact_location).path) / "artifacts" / f"{model.name}.pt"
    clone.run("sh", "-c", model.tags["get"])
    for path in (kept, clone.folder / kept.name):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == model.tags["sha256"]


def test_a_fresh_clone_with_dvc_pull_evaluates_without_training(own, tmp_path):
    own.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    own.run("dvc", "push", "--quiet")
    own.commit("remote")
    own.run("git", "clone", "-q", ".", str(tmp_path / "second"))
    second = Clone(tmp_path / "second")
    second.run("dvc", "pull", "--quiet")
    assert "up to date" in second.repro()
    expected = second.metrics("evaluation")
    second.repro("--single-item", "--force", "evaluate")
    assert second.metrics("evaluation") == expected
    trained, evaluated = _runs_of(second)
    assert trained is evaluated
    assert _differing(second, None, evaluated) == []
    assert {"model_sha256", "data_hash"} <= evaluated.tags.keys()


def test_a_typing_error_in_params_stops_before_any_work(own):
    path = own.folder / "params.yaml"
    original = path.read_text()
    path.write_text(original.replace(f"image_size: {IMAGE_SIZE}", "image_size: 113"))
    output = own.repro(code=255)
    assert "image_size = 113: must be a multiple of the vision encoder's patch size 28" in output
    assert "Traceback" not in output
    path.write_text(original)
    assert "Running stage" not in own.repro()


def test_a_download_is_imported_and_the_command_that_this_prints_evaluates_it(untracked, tmp_path):
    """As a user types it; only image_size and train.epochs of the clone's params.yaml are small."""
    gornale_kl(tmp_path / "download")
    printed = untracked.run("knee-siglip", "import", f"{tmp_path}/download", f"{tmp_path}/rows.csv", "--split")
    untracked.run("sh", "-c", printed.rpartition("Next: ")[2])
    test_rows = (pd.read_csv(tmp_path / "rows.csv")["split"] == "test").sum()
    assert untracked.metrics("evaluation")["test"]["rows"] == test_rows
    assert len(pd.read_csv(untracked.folder / "reports/inference/results.csv")) == test_rows


def test_a_leaking_patient_stops_the_pipeline(own):
    row, changes = _leak(own)
    output = own.run("dvc", "exp", "run", *changes, code=255)
    assert row["patient_id"] in output
    assert "Traceback" not in output
    issues = pd.read_csv(own.folder / "reports/validation/issues.csv", dtype=str)
    assert set(issues.loc[issues["severity"] == "error", "check"]) == {"patient_leak"}
    page = (own.folder / "reports/validation/index.html").read_text()
    assert f"patient {row['patient_id']} is in" in page


def _leak(clone: Clone) -> tuple[pd.Series, tuple[str, ...]]:
    """A test row that a copy of the sample has in train, and the changes that ask for the copy."""
    folder = clone.folder / "own"
    shutil.copytree(clone.folder / "data" / "sample", folder)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    row = table.index[table["split"] == "test"][0]
    table.loc[row, "split"] = "train"
    table.to_csv(folder / "train.csv", index=False)
    return table.loc[row], ("-S", f"data.csv={folder}/train.csv", "-S", f"data.images={folder}/images")


def _images(clone: Clone) -> int:
    return int(json.loads((clone.folder / "data/cache/cache.json").read_text())["images"])


def _wait_for(happened: Callable[[], object], seconds: int = 120, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(pause)


class Tracked:
    """A run as MLflow and W&B hold it: final values, and curves as their points."""

    def __init__(self, clone: Clone, run_id: str, in_wandb: WandbRun) -> None:
        (run,) = mlflow_runs(clone.folder, **{"knee_siglip.run": run_id})
        self.tags = run.data.tags
        self.values = {"MLflow": run.data.metrics, "W&B": in_wandb.summary}
        rows = [row for row in in_wandb.history if "train/step_loss" in row]
        self.curves = {
            "MLflow": mlflow_curve(clone.folder, run, "train/step_loss"),
            "W&B": [(int(row["_step"]), row["train/step_loss"]) for row in rows],
        }


def _runs_of(clone: Clone) -> tuple[Tracked, Tracked]:
    """The runs of this workspace's model and evaluation, by the command that names them."""
    shown = dict(re.findall(r"this workspace's (\w+): run (\S+)", _delivered(clone)))
    in_wandb = wandb_runs(clone.folder)
    runs = {run_id: Tracked(clone, run_id, in_wandb[run_id]) for run_id in set(shown.values())}
    return runs[shown["model"]], runs[shown["evaluation"]]


def _delivered(clone: Clone) -> str:
    """What `sync` says of this workspace, after sending what is pending: a busy machine's MLflow can miss a stage."""
    listed = clone.run("knee-siglip", "sync", "--list")
    if "nothing is pending" not in listed:
        clone.run("knee-siglip", "sync")
    return listed


def _differing(clone: Clone, model: Tracked | None, evaluation: Tracked) -> list[str]:
    """Values of this workspace's metrics.json that the runs lack or have otherwise; model: None where it is unknown."""
    wrong = []
    for tracker, evaluated in evaluation.values.items():
        trained = model.values[tracker] if model else {}
        names = differing(written(clone.folder, ("evaluation",)), evaluated)
        if model:
            names += differing(written(clone.folder, ("train",)), trained)
            names += differing_headline(headline(clone.folder), {**trained, **evaluated})
        wrong += [f"{tracker} {name}" for name in names]
    return wrong
