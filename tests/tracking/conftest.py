"""One real run through all three trackers, shared: its processes take many seconds to start."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from knee_siglip.core.files import sha256
from knee_siglip.params.files import parse_params
from knee_siglip.tracking.tracker import attach_tracker, open_tracker, remember_run
from mute_server import MuteServer
from report.conftest import browser

__all__ = ["browser"]

TRAIN_METRICS = {
    "train": {"loss": 0.1234567890123456},
    "val": {"loss": 0.5, "contrastive_accuracy": 0.75},
    "best_epoch": 2,
}
TEST_METRICS = {"test.loss": 0.7, "test.zero_shot_kl.accuracy": 1 / 3}


@dataclass
class Recorded:
    """What the shared run left behind."""

    root: Path
    run_id: str
    train_metrics = TRAIN_METRICS
    test_metrics = TEST_METRICS
    warnings: list[str] = field(default_factory=list)
    visitors: int = 0
    random_state_kept: bool = False

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"

    def wandb_records(self, session: int) -> list[dict]:
        """All records of the session's offline run, as W&B's own reader gives them."""
        folders = sorted((self.root / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
        return _records(folders[session])


@cache
def _records(folder: Path) -> list[dict]:
    """W&B's reader takes most of a second."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Recorded]:
    """A training of three epochs and an evaluation that attaches to it, with the default settings."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(mlflow_database, root / "mlflow.db")
    warnings, proxy = Warnings(), MuteServer()  # stands where every HTTP client looks for the way out
    logging.getLogger().addHandler(warnings)
    with pytest.MonkeyPatch.context() as patch:
        _isolate(patch, root, proxy.url)
        state = random.getstate()
        run_id = _train(root)
        evaluated = {"stage": "evaluate", "model": sha256(root / "model.pt"), "figures": TEST_METRICS}
        evaluated["data_hash"] = "d" * 32
        with attach_tracker(parse_params({}), **evaluated) as tracker:
            tracker.log_summary(TEST_METRICS)
        kept = random.getstate() == state
    logging.getLogger().removeHandler(warnings)
    yield Recorded(root, run_id, warnings.lines, proxy.visitors, kept)
    proxy.socket.close()


def _isolate(patch: pytest.MonkeyPatch, root: Path, proxy: str) -> None:
    for name in ("MLFLOW_TRACKING_URI", "KNEE_SIGLIP_STORE", "NO_PROXY", "no_proxy", "RANK"):
        patch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        patch.setenv(name, proxy)
    (root / "home").mkdir()
    patch.setenv("HOME", str(root / "home"))
    patch.setenv("DVC_ROOT", str(root))
    patch.setenv("DVC_EXP_NAME", "sunny-knee")
    patch.chdir(root)


def _train(root: Path) -> str:
    params = parse_params({})
    facts = {"data_hash": "d" * 32, "parameters": {"total": 418_000}, "dataset": {"train_rows": 8, "test_rows": 2}}
    model, figure = Path("model.pt"), root / "matrix.png"
    model.write_bytes(os.urandom(1000))
    figure.write_bytes(b"png")
    with open_tracker(params, stage="train", facts=facts) as tracker:
        for epoch in range(3):
            tracker.log_metrics(
                {"train.loss": 3.0 - epoch, "val.loss": float("nan") if epoch == 1 else 2.0}, step=epoch
            )
        tracker.log_metrics({"train.scale": float("inf"), "speed.pairs_per_second": 7.0}, step=3)
        tracker.log_summary(TRAIN_METRICS | {"speed": {"pairs_per_second": 8.0}})
        tracker.log_artifact(model, "model")
        tracker.log_artifact(Path(shutil.copy(model, "final_model.pt")), "model")
        tracker.log_artifact(figure, "report", "figures")
        remember_run(tracker, model)
    return tracker.run_id
