"""Small stand-ins that several test folders share."""

import os
from collections.abc import Callable

import pytest

from knee_siglip.data.batches import PairDataset
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from toys import toy_model, toy_pairs

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """No test touches the user's store or tracking databases."""
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_model() -> Callable[..., KneeRadDinoSigLIPModel]:
    """`toys.toy_model`."""
    return toy_model


@pytest.fixture
def make_pairs() -> Callable[..., PairDataset]:
    """`toys.toy_pairs`."""
    return toy_pairs
