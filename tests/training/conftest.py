"""A whole project in a folder: images, manifest, cache, the small encoders, and where a training writes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.encoders.backbones import write_backbones
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.params.sections import ModelParams, Params
from knee_siglip.store.pixels import build_cache
from knee_siglip.tables.manifest import write_manifest
from knee_siglip.tracking.tracker import open_tracker
from knee_siglip.training import run
from knee_siglip.training.run import TrainFiles
from toys import open_without_dvclive

SIZE = 28
WORDS = ("normal", "mild", "moderate", "severe")


@pytest.fixture(autouse=True)
def _without_dvclive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "open_tracker", open_without_dvclive)


@pytest.fixture
def dvclive(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that reads the curves in `reports/train/live`."""
    monkeypatch.setattr(run, "open_tracker", open_tracker)


@pytest.fixture(scope="session")
def _backbones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "backbones"
    write_backbones(ModelParams(), folder)
    return folder


@pytest.fixture
def files(tmp_path, _backbones, one_core) -> TrainFiles:
    """28 training and 12 validation images of noise, each brightness with a text of its own."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        bright = 40 * (number % 4)
        Image.fromarray(rng.integers(bright, bright + 60, (SIZE, SIZE), dtype=np.uint8)).save(path)
        rows.append(
            {
                "img_path": path.name,
                "split": "train" if number < 28 else "val",
                "patient_id": str(number // 2),
                "image_file": str(path),
                "image_id": hashlib.sha256(path.read_bytes()).hexdigest(),
                "width": SIZE,
                "height": SIZE,
                "bits": 8,
                "text": f"{WORDS[number % 4]} knee",
                "flags": "",
            }
        )
    files = TrainFiles(
        manifest=tmp_path / "manifest.parquet",
        cache_facts=tmp_path / "cache/cache.json",
        backbones=_backbones,
        best_model=tmp_path / "models/best_model.pt",
        final_model=tmp_path / "models/final_model.pt",
        report=tmp_path / "reports/train",
    )
    manifest = pd.DataFrame(rows)
    write_manifest(manifest, files.manifest)
    transform = Transform(image_size=SIZE, fit="pad", contrast="none")
    build_cache(manifest, transform, tmp_path / "cache/index.parquet", files.cache_facts)
    return files


@pytest.fixture
def make_params() -> Callable[..., Params]:
    """Params of a short training without trackers; keywords are those of `train`."""

    def make(seed: int = 0, **train) -> Params:
        values = {"batch_size": 8, "epochs": 2, "mixed_precision": "none"} | train
        tracking = {"mlflow": "none", "wandb": "none"}
        return Params.model_validate({"image_size": SIZE, "seed": seed, "train": values, "tracking": tracking})

    return make
