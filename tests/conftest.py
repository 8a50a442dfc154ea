"""Small stand-ins that several test folders share. Imports little: pytest-xdist's own process reads it too."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from knee_siglip.core.files import lock

if TYPE_CHECKING:
    from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
    from knee_siglip.pairs.batches import PairDataset

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


LONGEST = (
    "test_through_dvc",
    "test_kills",
    "test_run",
    "test_layouts",
    "test_distributed",
    "test_tracker",
    "test_train",
    "test_chaos",
    "test_gpu_all",
    "test_release",
    "test_hostile_rows",
    "test_acceleration",
)
"""Files of more than ten seconds of processor time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one process has one while the others do the rest, and none waits for it at the end."""
    ranks = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: no collection of garbage looks at it again, and no forked process copies it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """No test touches the user's store or tracking databases."""
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this process alone: starting others takes longer than a test's few images."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0}, raising=False)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, to be copied: making one takes 8 s. All of pytest's processes share it."""
    from knee_siglip.tracking.mlflow_models import ENVIRONMENT, create_database  # slow: few tests need it

    folder = tmp_path_factory.getbasetemp()
    database = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mlflow.db"
    with lock(database.with_suffix(".lock"), "making a database"), pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        if not database.exists():
            create_database(database)
    return database


@pytest.fixture
def make_model() -> Callable[..., "KneeRadDinoSigLIPModel"]:
    """`toys.toy_model`."""
    from toys import toy_model

    return toy_model


@pytest.fixture
def make_pairs() -> Callable[..., "PairDataset"]:
    """`toys.toy_pairs`."""
    from toys import toy_pairs

    return toy_pairs


@pytest.fixture
def knee_siglip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; returns exit code, stdout and stderr."""
    from knee_siglip.cli import main as cli

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knee-siglip", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def save_dicom(tmp_path: Path) -> Callable[..., Path]:
    """A little-endian DICOM of the stored values; keywords are elements, None takes one out."""

    from pydicom.dataset import Dataset, FileMetaDataset  # slow: few tests need it
    from pydicom.uid import ExplicitVRLittleEndian

    def save_dataset(stored: np.ndarray, name: str = "image.dcm", bits: int = 12, **elements) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        dataset.Rows, dataset.Columns = stored.shape[:2]
        dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = stored.dtype.itemsize * 8
        dataset.BitsStored = bits
        dataset.HighBit = bits - 1
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.PixelData = stored.tobytes()
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        path = tmp_path / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    return save_dataset
