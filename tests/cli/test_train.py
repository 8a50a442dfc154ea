"""`knee-siglip train` on a miniature, outside DVC, and the model it writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.cli import main as cli
from knee_siglip.model.checkpoint import load_checkpoint
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params.files import load_params, parse_params, save_params

NAMES = ("alone", "together")
ROWS = {"train": 8, "val": 4, "test": 4}


@pytest.fixture
def project(make_model: Callable[..., KneeRadDinoSigLIPModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a CSV of small images, a vision encoder and params that switch the trackers off; made current."""
    rng = np.random.default_rng(0)
    rows = []
    for split, count in ROWS.items():
        for number in range(count):
            name = f"images/{split}{number}.png"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / name)
            impression = "Normal right knee joint." if number % 2 else "Severe OA of left knee joint."
            rows.append([name, impression, split, f"{split}-{number}"])
    pd.DataFrame(rows, columns=["img_path", "impression", "split", "patient_id"]).to_csv(
        tmp_path / "my.csv", index=False
    )
    make_model().vision_model.save_pretrained(tmp_path / "vision")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "vision/preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "params.yaml").write_text("model: {vision: vision}\ntracking: {mlflow: none, wandb: none}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["knee-siglip", *command.split()])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_training_outside_dvc_writes_one_folder_and_its_model_infers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(project.iterdir())
    train = "train --data_path my.csv --image_size 28 --epochs 1 --batch_size 4 --experiment_name mini --device cpu"
    assert run(monkeypatch, train) == 0
    folder = project / "runs" / "mini"
    assert {path.name for path in set(project.iterdir()) - before} <= {"runs", "store"}
    assert {"best_model.pt", "final_model.pt", "manifest.parquet", "reports"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "reports/train/metrics.json").read_text())["epochs_done"] == 1
    assert "No errors" in (folder / "reports/validation/index.html").read_text()
    checkpoint = load_checkpoint(folder / "best_model.pt")
    assert (checkpoint.image_size, checkpoint.params["train"]["batch_size"]) == (28, 4)
    assert run(monkeypatch, "infer --model_path runs/mini/best_model.pt --csv_path my.csv --device cpu") == 0
    assert pd.read_csv(project / "results.csv")["status"].tolist() == ["ok"] * sum(ROWS.values())


def test_two_processes_train_what_one_trains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher gets the training only: images are prepared once, and one process writes."""
    flags = "train --data_path my.csv --image_size 28 --epochs 2 --batch_size 4 --device cpu --experiment_name"
    assert run(monkeypatch, f"{flags} alone") == 0
    command = [Path(sys.executable).with_name("knee-siglip"), *flags.split(), "together"]
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    done = subprocess.run(command, env=os.environ | {"KNEE_SIGLIP_LAUNCHER": launcher}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("are in runs/together") == 1
    alone, together = (json.loads((Path("runs") / name / "reports/train/metrics.json").read_text()) for name in NAMES)
    assert together["train"] == pytest.approx(alone["train"], rel=1e-3)
    assert together["val"] == pytest.approx(alone["val"], rel=1e-3)


def test_torchrun_around_the_whole_command_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(monkeypatch, "train --data_path my.csv --image_size 28") == 2


def test_leaking_patient_stops_training_before_anything_is_trained_and_no_password_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv("my.csv")
    table.loc[table["split"] == "test", "patient_id"] = "train-0"
    table.to_csv("my.csv", index=False)
    params = load_params(Path("params.yaml")).to_dict()
    params["tracking"]["mlflow"] = "https://me:secret@mlflow.invalid"
    save_params(parse_params(params, source="test"), Path("own.yaml"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    flags = "--params own.yaml --data_path my.csv --image_size 28 --epochs 1 --batch_size 4"
    assert run(monkeypatch, f"train {flags}") == 1
    assert "secret" not in (project / "runs/train/params.yaml").read_text()
    page = (project / "runs/train/reports/validation/index.html").read_text()
    assert "patient train-0 is in train" in page
    assert not (project / "runs/train/best_model.pt").exists()


def test_image_size_that_does_not_fit_the_encoder_is_exit_code_2(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "train --data_path my.csv --image_size 30") == 2
    assert not (project / "runs").exists()
