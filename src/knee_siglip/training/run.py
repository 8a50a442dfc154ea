"""A training run from files to files: cache and backbones in, checkpoints and metrics out."""

import hashlib
import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from knee_siglip.data.batches import PairDataset, distinct_texts
from knee_siglip.data.manifest import read_manifest
from knee_siglip.data.store import CachedPixels, open_pixels
from knee_siglip.data.text import tokenize
from knee_siglip.errors import UserError
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint, save_checkpoint
from knee_siglip.model.device import pick_device, place
from knee_siglip.params import Params, check_divisible, nest
from knee_siglip.tracking.tracker import Tracker, open_tracker, remember_run
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.trainer import History, Trainer


@dataclass(frozen=True)
class TrainFiles:
    """Where a run reads and writes."""

    manifest: Path
    cache_facts: Path
    backbones: Path
    best_model: Path
    final_model: Path
    report: Path


def train(params: Params, files: TrainFiles, device: str = "auto") -> None:
    """Train on the manifest's train split, keep the best model on its val split, and log it all.

    Raises:
        UserError: a split is empty, the encoders do not fit the image size, or training diverged.
    """
    torch.manual_seed(params.seed)
    manifest = read_manifest(files.manifest)
    group_size = params.train.batch_size * params.train.gradient_accumulation_steps
    model, tokenizer = build_model(files.backbones, params.model, group_size)
    freeze_towers(model, params.train.freeze)
    check_divisible(params.image_size, model.config.vision_config.patch_size, "params.yaml")
    pixels = open_pixels(manifest, files.cache_facts)
    # `tracking` stays out: a tracking URI may hold a password, and a checkpoint travels
    trained_with = {name: value for name, value in params.to_dict().items() if name != "tracking"}
    checkpoint = Checkpoint(model, tokenizer, pixels.transform, trained_with, data_hash=data_hash(manifest, pixels))
    train_set, val_set = (_pairs(manifest, pixels, checkpoint, split) for split in ("train", "val"))
    facts = dataset_facts(manifest, checkpoint) | {"data_hash": checkpoint.data_hash}
    with open_tracker(params, stage="train", facts=facts, live_folder=files.report / "live") as tracker:
        trainer = Trainer(
            place(model, pick_device(device)),
            train_set,
            val_set,
            params.train,
            seed=params.seed,
            device=pick_device(device),
            log=tracker.log_metrics,
            on_best=lambda metrics: _save(checkpoint, metrics, files.best_model),
        )
        history = trainer.fit()
        _save(checkpoint, history.epochs[-1], files.final_model)
        _report(history, facts, files, tracker)


def data_hash(manifest: pd.DataFrame, pixels: CachedPixels) -> str:
    """Hash of what training sees: image contents, texts, splits and the image transform."""
    rows = manifest[["image_id", "text", "split"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256((pixels.transform.key + "\n" + rows).encode()).hexdigest()


def dataset_facts(manifest: pd.DataFrame, checkpoint: Checkpoint) -> dict[str, Any]:
    """Dotted dataset statistics and parameter counts, as trackers and metrics.json show them."""
    splits: Sequence[str] = ("train", "val", "test")
    facts: dict[str, Any] = {f"dataset.{split}_rows": int((manifest["split"] == split).sum()) for split in splits}
    facts["dataset.distinct_texts"] = int(manifest["text"].nunique())
    if "patient_id" in manifest:
        facts["dataset.patients"] = int(manifest["patient_id"].nunique())
    return facts | {f"parameters.{name}": count for name, count in checkpoint.model.parameter_counts().items()}


def _pairs(manifest: pd.DataFrame, pixels: CachedPixels, checkpoint: Checkpoint, split: str) -> PairDataset:
    rows = (manifest["split"] == split).to_numpy().nonzero()[0]
    if len(rows) < 2:
        raise UserError(
            f"the {split} split has {len(rows)} rows in the manifest; contrastive training needs at least 2"
        )
    texts, text_ids = distinct_texts(manifest["text"].iloc[rows].tolist())
    input_ids = tokenize(checkpoint.tokenizer, texts, checkpoint.max_text_length, checkpoint.position_count)
    return PairDataset(pixels, rows, input_ids, text_ids)


def _save(checkpoint: Checkpoint, metrics: dict[str, float], path: Path) -> None:
    checkpoint.metrics = metrics
    save_checkpoint(checkpoint, path)


def _report(history: History, facts: dict[str, Any], files: TrainFiles, tracker: Tracker) -> None:
    """Write metrics.json and speed.json; log the same figures and the checkpoints."""
    last, best = history.epochs[-1], history.epochs[history.best_epoch - 1]
    curves = ("train.loss", "train.contrastive_accuracy", "val.loss", "val.contrastive_accuracy")
    figures = {
        **{name: last[name] for name in curves},
        "best.val_loss": best["val.loss"],
        "best.val_contrastive_accuracy": best["val.contrastive_accuracy"],
        "best_epoch": history.best_epoch,
        "epochs_done": len(history.epochs),
        **{name: value for name, value in facts.items() if name.startswith(("parameters.", "dataset."))},
    }
    speed = {"pairs_per_second": history.pairs_seen / history.seconds, "peak_memory_mb": peak_memory_mb()}
    files.report.mkdir(parents=True, exist_ok=True)
    _write_json(figures, files.report / "metrics.json")
    _write_json(speed, files.report / "speed.json")
    tracker.log_summary(figures | speed)
    for path in (files.best_model, files.final_model):
        tracker.log_artifact(path, kind="model")
    remember_run(tracker, files.best_model)


def peak_memory_mb() -> float:
    """Largest memory held so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _write_json(figures: dict[str, Any], path: Path) -> None:
    """Dotted keys become nested sections, as DVC reads them."""
    path.write_text(json.dumps(nest(figures), indent=2) + "\n")
