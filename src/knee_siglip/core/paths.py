"""The only module that knows a path of the project."""

import os
from pathlib import Path

import platformdirs

PARAMS = Path("params.yaml")

PARAMS_CHECKED = Path("data/params_checked.txt")
SAMPLE = Path("data/sample")
MANIFEST = Path("data/validated/manifest.parquet")
EXTERNAL_MANIFEST = Path("data/validated/external.parquet")
CACHE_INDEX = Path("data/cache/index.parquet")
CACHE_FACTS = Path("data/cache/cache.json")

BACKBONES = Path("models/backbones")
BEST_MODEL = Path("models/best_model.pt")
FINAL_MODEL = Path("models/final_model.pt")

VALIDATION_REPORT = Path("reports/validation")
TRAIN_REPORT = Path("reports/train")
EVALUATION_REPORT = Path("reports/evaluation")
HEADLINE_METRICS = Path("reports/metrics.json")
PREDICTIONS = Path("reports/evaluation/predictions.parquet")
INFERENCE_REPORT = Path("reports/inference")

A_STAGE = Path("stages/train.py")
"""By which a repository with this pipeline is known."""

PIXELS, FEATURES, RUNS, FAILED = "pixels", "features", "runs", "failed"
"""Folders of the store: two kinds of rows by image id, resume states, and pages of failed temporary runs."""


def project_root() -> Path | None:
    """The DVC repository, None where there is none.

    Inside DVC that of the run, `--temp` and `--queue` runs too, else the one around the current folder.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc" / "config").is_file()), None)


def lasting_report(folder: Path) -> Path:
    """Where a failed validation's report outlives the run: its folder, or one in the store.

    DVC deletes the folder of a `--queue` or `--temp` run at its end.
    """
    root = os.environ.get("DVC_ROOT")
    if not root or Path.cwd().resolve() == Path(root).resolve():
        return folder
    return store_root() / FAILED / (os.environ.get("DVC_EXP_NAME") or Path.cwd().name)


def store_root() -> Path:
    """Folder of the pixel store and the resume states, shared by all experiments of one project.

    `$KNEE_SIGLIP_STORE`, else the project's `.store`; outside a project a folder in the user's cache directory.
    """
    if override := os.environ.get("KNEE_SIGLIP_STORE"):
        return Path(override)
    root = _pipeline_root()
    return root / ".store" if root else Path(platformdirs.user_cache_dir("knee-siglip")) / "store"


def tracking_root() -> Path:
    """Folder in which the local tracking stores (mlflow.db, mlartifacts/, wandb/) are kept."""
    return (_pipeline_root() or Path.cwd()).resolve()


def _pipeline_root() -> Path | None:
    """`project_root` if it holds this pipeline: git in another repository would take patients' pixels from a store."""
    root = project_root()
    return root if root and (os.environ.get("DVC_ROOT") or (root / A_STAGE).is_file()) else None
