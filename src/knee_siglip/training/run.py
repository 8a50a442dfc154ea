"""A training run: reads cache and backbones, writes checkpoints and metrics."""

import hashlib
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from knee_siglip.core import paths
from knee_siglip.core.errors import Interrupted, UserError
from knee_siglip.core.files import link_or_copy
from knee_siglip.core.metrics_file import rounded, write_json, write_metrics
from knee_siglip.encoders.adapters import merged_state_dict
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint, save_checkpoint, start_from
from knee_siglip.model.device import autocast_dtype, place
from knee_siglip.pairs.batches import PairDataset, Pixels
from knee_siglip.pairs.sentences import VERSIONS, TextVersions, text_versions
from knee_siglip.params.checks import check_divisible
from knee_siglip.params.sections import Params, TrainParams
from knee_siglip.params.tasks import task_of
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.ids import independent_units
from knee_siglip.tables.manifest import TOKENS_COLUMN, count_drawn, number_groups, read_manifest
from knee_siglip.tables.sides import exchange_sides
from knee_siglip.tables.text import fitting_text_length, position_count, tokenize
from knee_siglip.tracking.tracker import Tracker, open_tracker, remember_run
from knee_siglip.training.distributed import Ranks, open_ranks
from knee_siglip.training.features import frozen_features
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.interruption import stop_on_signals
from knee_siglip.training.monitoring.facts import add_answers
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.resume import (
    StateSaver,
    copy_state,
    fingerprint,
    open_run,
    require_space,
    share_state,
)
from knee_siglip.training.schedule import Budget
from knee_siglip.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainFiles:
    """Files that a run reads (the first three) and writes."""

    manifest: Path
    cache_facts: Path
    backbones: Path
    best_model: Path
    final_model: Path
    report: Path


def train(params: Params, files: TrainFiles, device: str = "auto") -> None:
    """Train on the manifest's train split, and keep the best model on its val split.

    An interrupted run resumes from its last saved state. Under torchrun every process calls this; the first one writes.

    Raises:
        UserError: a split is empty, the encoders do not fit the image size, or training diverged.
        Interrupted: a signal asked to stop.
    """
    with open_ranks(device) as (ranks, chosen):
        if not ranks.is_first:  # all would log the same
            logging.getLogger("knee_siglip").setLevel(logging.ERROR)
        torch.manual_seed(params.seed)
        job = _prepare(params, files, ranks, chosen)
        key = fingerprint(job.params, job.checkpoint.data_hash, files.backbones)
        first = open_run(paths.store_root() / paths.RUNS, key, params.train.save_every_minutes)
        with first if ranks.is_first else nullcontext() as saver:
            if saver is not None:
                require_space(saver.folder, files.best_model.parent, job.checkpoint.model, bool(params.train.ema_decay))
            ranks.wait()  # until the first process holds the lock, or has ended without it
            try:
                _train(job, key, saver)
            except Interrupted as error:
                if ranks.is_first:
                    raise
                sys.exit(error.exit_code)  # the first process reports it
            if saver is not None:
                saver.remove()


@dataclass(frozen=True)
class Job:
    """A training that is ready to start."""

    params: Params
    files: TrainFiles
    ranks: Ranks
    device: torch.device
    manifest: pd.DataFrame
    pixels: CachedPixels
    checkpoint: Checkpoint
    train_set: PairDataset
    val_set: PairDataset


def _prepare(params: Params, files: TrainFiles, ranks: Ranks, device: torch.device) -> Job:
    manifest = read_manifest(files.manifest)
    params = choose_text_length(params, manifest, files.backbones / "text")
    train_rows, val_rows = _rows(manifest, "train"), _rows(manifest, "val")
    params = params.model_copy(update={"train": choose_length(params.train, manifest.iloc[train_rows])})
    group_size = params.train.batch_size * params.train.gradient_accumulation_steps
    model, tokenizer = build_model(files.backbones, params.model, group_size)
    if params.train.init_from is not None:
        start_from(model, Path(params.train.init_from))
    freeze_towers(model, params.train.freeze, params.train.lora)
    check_divisible(params.image_size, model.vision.patch, "params.yaml")
    pixels = open_pixels(manifest, files.cache_facts)
    checkpoint = Checkpoint(
        place(model, device), tokenizer, pixels.transform, saved_params(params), data_hash=data_hash(manifest, pixels)
    )
    seen: Pixels = pixels
    if params.train.freeze.vision == "all" and params.train.cache_frozen_features:
        seen = _features(params, checkpoint, pixels, manifest, np.concatenate([train_rows, val_rows]))
    train_set = _pairs(manifest, seen, train_rows, checkpoint, params)
    val_set = _pairs(manifest, seen, val_rows, checkpoint)
    return Job(params, files, ranks, device, manifest, pixels, checkpoint, train_set, val_set)


def saved_params(params: Params) -> dict[str, Any]:
    """What a checkpoint keeps of params.yaml: what it was trained with, and the questions that it answers by default.

    Not `tracking`, whose URI may hold a password, and nothing else that can change while the model stays the same.
    `task` and the prompts can: inside the pipeline, evaluate and infer take those of params.yaml.
    """
    values = params.to_dict()
    kept = {name: values[name] for name in ("image_size", "seed", "preprocess", "model", "train", "task")}
    return kept | {"evaluate": {name: values["evaluate"][name] for name in ("label_prompts", "findings")}}


def choose_text_length(params: Params, manifest: pd.DataFrame, text_encoder: Path) -> Params:
    """Params with a number in place of `model.max_text_length: auto`, from the token counts that validation wrote.

    Raises:
        UserError: the manifest has no counts.
    """
    if params.model.max_text_length != "auto":
        return params
    if TOKENS_COLUMN not in manifest:
        raise UserError(
            "model.max_text_length = auto: the manifest has no token counts; rerun validation (dvc repro -f validate) "
            "or give a number"
        )
    counts = manifest.loc[manifest["split"] == "train", TOKENS_COLUMN]
    length = fitting_text_length(counts, position_count(text_encoder))
    cut = int((counts > length).sum())
    logger.warning("model.max_text_length = auto: %d tokens; %d of %d training texts are cut", length, cut, len(counts))
    return params.model_copy(update={"model": params.model.model_copy(update={"max_text_length": length})})


def choose_length(params: TrainParams, rows: pd.DataFrame) -> TrainParams:
    """Params with a number in place of `steps: auto`, unless `epochs` sets the length. rows: of the training."""
    if params.epochs is not None or params.steps != "auto":
        return params
    drawn = count_drawn(rows)
    budget = Budget.of(params, len(rows), are_drawn=drawn > len(rows) / 2)
    steps, epochs = budget.total_steps, budget.epochs_at(budget.total_steps)
    kind = f"training rows, {drawn} of them drawn by a program" if drawn else "training rows"
    logger.warning("train.steps = auto: %d steps (%.3g epochs) for %d %s", steps, epochs, len(rows), kind)
    return params.model_copy(update={"steps": steps})


def _train(job: Job, key: str, saver: StateSaver | None) -> None:
    """Train and report; `key` joins the trackers' records of a resumed run."""
    params, files, checkpoint = job.params, job.files, job.checkpoint
    facts = dataset_facts(job.manifest, checkpoint) | {"data_hash": checkpoint.data_hash}

    def on_best(metrics: dict[str, float]) -> None:
        if saver is not None:
            _save(checkpoint, metrics, saver.best_model)
            _publish(saver, files.best_model)

    live, has_states = files.report / "live", saver is not None and saver.begun is not None
    with (
        stop_on_signals() as stop,
        open_tracker(
            params, stage="train", facts=facts, run_key=key, has_states=has_states, live_folder=live
        ) as tracker,
    ):
        trainer = Trainer(
            checkpoint.model,
            job.train_set,
            job.val_set,
            params.train,
            seed=params.seed,
            device=job.device,
            log=tracker.log_metrics,
            on_best=on_best,
            guard=_guard(job),
            ranks=job.ranks,
            saver=saver,
            stop=stop,
        )
        _resume(trainer, files)
        history = trainer.fit()
        if job.ranks.is_first:
            with trainer.chosen_weights():
                _save(checkpoint, history.rounds[-1], files.final_model)
            verdict = rounded(trainer.monitor.verdict(history))
            _complete(job, verdict, is_best=history.best_round == len(history.rounds))
            write_json(files.report / "verdict.json", verdict)
            _report(trainer, facts, files, tracker)


def _resume(trainer: Trainer, files: TrainFiles) -> None:
    """Load the newest usable state, if any, which the first rank reads and shares; it also reports it."""
    saver = trainer.saver
    states = saver.undamaged() if saver else iter(())
    while (state := share_state(next(states, None), trainer.ranks)) is not None:
        if _fits(state, trainer):
            break
    if saver is None:
        return
    saver.restore_best(trainer.step)
    if trainer.history.best_round:
        _publish(saver, files.best_model)
    if state is not None:
        logger.warning("resuming at step %d of %d", trainer.step, trainer.budget.total_steps)
    elif saver.begun is not None:
        logger.warning(
            "this training was begun on %s and interrupted, and no saved state can be used: it starts again from the "
            "beginning (train.save_every_minutes: %g)",
            f"{saver.begun:%Y-%m-%d at %H:%M}",
            saver.minutes,
        )


def _fits(state: dict[str, Any], trainer: Trainer) -> bool:
    """Load the state, unless it is one of another version of this program: then change nothing."""
    before = copy_state(trainer.state_dict())
    try:
        trainer.load_state_dict(state)
    # a missing entry, another type, other shapes: whatever another version has saved
    except Exception as error:
        logger.warning("a saved state does not fit this version of knee-siglip and is not used (%r)", error)
        trainer.load_state_dict(before)
        return False
    return True


def data_hash(manifest: pd.DataFrame, pixels: CachedPixels) -> str:
    """Hash of the training data: image contents, texts, splits, studies of several images and the image transform."""
    table, studies = manifest[["image_id", "text", "split"]], number_groups(manifest, "study_id")
    if len(np.unique(studies)) < len(table):
        table = table.assign(study=studies)
    rows = table.to_csv(index=False, lineterminator="\n")
    return hashlib.sha256((pixels.transform.key + "\n" + rows).encode()).hexdigest()


def dataset_facts(manifest: pd.DataFrame, checkpoint: Checkpoint) -> dict[str, Any]:
    """Dotted dataset statistics and parameter counts, as trackers and metrics.json show them."""
    splits = ("train", "val", "test")
    facts: dict[str, Any] = {f"dataset.{split}_rows": int((manifest["split"] == split).sum()) for split in splits}
    facts["dataset.max_text_length"] = checkpoint.max_text_length
    facts["dataset.distinct_texts"] = int(manifest["text"].nunique())
    if "patient_id" in manifest:
        facts["dataset.patients"] = independent_units(manifest).counts["patient"]
    return facts | {f"parameters.{name}": count for name, count in checkpoint.model.parameter_counts().items()}


def _rows(manifest: pd.DataFrame, split: str) -> np.ndarray:
    rows = (manifest["split"] == split).to_numpy().nonzero()[0]
    if len(rows) < 2:
        raise UserError(
            f"the {split} split has {len(rows)} rows in the manifest; contrastive training needs at least 2"
        )
    return rows


def _pairs(
    manifest: pd.DataFrame, pixels: Pixels, rows: np.ndarray, checkpoint: Checkpoint, params: Params | None = None
) -> PairDataset:
    """The pairs of some rows; params: of training, whose texts change."""
    split = manifest.iloc[rows]
    text_ids, distinct = pd.factorize(split["text"])
    texts, mirrored, versions = distinct.tolist(), None, None
    # normalised texts have no sentences any more
    impressions = split.get("impression", split["text"]).iloc[np.unique(text_ids, return_index=True)[1]].tolist()
    mirror = _mirror_share(params, pixels)
    if mirror:
        mirrored = _add_mirrored(texts, impressions)[text_ids]
    if params and params.train.augment.sentences():
        versions = _text_versions(impressions, checkpoint, params)
    input_ids, studies = _tokens(texts, checkpoint), number_groups(split, "study_id")
    return PairDataset(pixels, rows, input_ids, text_ids, studies, versions, mirrored, mirror)


def _mirror_share(params: Params | None, pixels: Pixels) -> float:
    """Share of mirrored pairs. None where images have no side: a mirrored chest has its heart on the right."""
    if params is None or params.task.side_words is None or not isinstance(pixels, CachedPixels):
        return 0.0
    return params.train.augment.mirror


def _add_mirrored(texts: list[str], impressions: list[str]) -> np.ndarray:
    """Add to the distinct texts (U,), and to the impressions they stand for, those of the mirrored images.

    Returns (U,): each text's place among them when its image is mirrored; -1 where it must not be.
    """
    number_of = {text: number for number, text in enumerate(texts)}
    mirrored = np.full(len(texts), -1)
    for number, text in enumerate(tuple(texts)):
        other = exchange_sides(text)
        if other is None:
            continue
        if other not in number_of:
            number_of[other] = len(texts)
            texts.append(other)
            impressions.append(exchange_sides(impressions[number]) or other)
        mirrored[number] = number_of[other]
    return mirrored


def _text_versions(impressions: Sequence[str], checkpoint: Checkpoint, params: Params) -> TextVersions | None:
    changes = params.train.augment
    texts, places = text_versions(impressions, changes.sentence_shuffle, changes.sentence_drop, params.seed)
    if not texts:
        logger.warning("train.augment: no training text has sentences that may change their order or be left out")
        return None
    input_ids = _tokens(texts, checkpoint)
    return TextVersions(input_ids.view(-1, VERSIONS, input_ids.shape[1]), places)


def _tokens(texts: Sequence[str], checkpoint: Checkpoint) -> Tensor:
    return tokenize(checkpoint.tokenizer, texts, checkpoint.max_text_length, checkpoint.position_count)


def _features(
    params: Params, checkpoint: Checkpoint, pixels: CachedPixels, manifest: pd.DataFrame, rows: np.ndarray
) -> Pixels:
    if params.train.augment.images():
        logger.warning(
            "the image encoder is frozen and its features are computed once, so train.augment changes no image; "
            "set train.cache_frozen_features: false to compute them from augmented images at every step"
        )
    model = checkpoint.model
    dtype = autocast_dtype(params.train.mixed_precision, model.device)
    root = paths.store_root() / paths.FEATURES
    return frozen_features(model, pixels, manifest["image_id"].tolist(), rows, root, dtype)


def _guard(job: Job) -> FiniteGuard:
    names = ["img_path", "image_id", "text"]

    def describe(rows: np.ndarray) -> list[dict[str, Any]]:
        values = job.manifest.iloc[rows][names].to_numpy().tolist()
        return [{"row": int(row), **dict(zip(names, v, strict=True))} for row, v in zip(rows, values, strict=True)]

    dump = job.files.report / "not_finite.json" if job.ranks.is_first else None
    return FiniteGuard(job.params.train.max_skipped_steps, dump, describe)


def _publish(saver: StateSaver, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(saver.best_model, path)


def _save(checkpoint: Checkpoint, metrics: dict[str, float], path: Path) -> None:
    checkpoint.metrics = metrics
    save_checkpoint(checkpoint, path, merged_state_dict(checkpoint.model))


def _complete(job: Job, verdict: dict[str, Any], is_best: bool) -> None:
    """Add to both checkpoints what answers need. is_best: the last round's weights are the best."""
    best, final = job.files.best_model, job.files.final_model
    add_answers(best, job.manifest, job.pixels, task_of(job.params), verdict, job.device)
    if is_best:
        link_or_copy(best, final)
    else:
        add_answers(final, job.manifest, job.pixels, task_of(job.params), verdict, job.device)


def _report(trainer: Trainer, facts: dict[str, Any], files: TrainFiles, tracker: Tracker) -> None:
    """Write metrics.json and speed.json; log the same metrics and the checkpoints."""
    history = trainer.history
    last = {name: value for name, value in history.rounds[-1].items() if name.startswith(("train.", "val"))}
    metrics = {
        **last,
        "train.skipped_steps": len(trainer.guard.skipped),
        **{f"best.{name.replace('.', '_', 1)}": v for name, v in history.best.items() if name.startswith("val")},
        "best_epoch": history.best["epoch"],
        "epochs_done": history.rounds[-1]["epoch"],
        "best_step": trainer.budget.end_of_round(history.best_round),
        "steps_done": trainer.step,
        **{name: value for name, value in facts.items() if name.startswith(("parameters.", "dataset."))},
    }
    speed = trainer.throughput.metrics()
    write_metrics(files.report / "metrics.json", metrics)
    write_metrics(files.report / "speed.json", speed)
    figures = {name: value for name, value in metrics.items() if name not in facts}  # which are shown as params
    tracker.log_summary(figures | {f"speed.{name}": value for name, value in speed.items()})
    for path in (files.best_model, files.final_model):
        tracker.log_artifact(path, kind="model")
    remember_run(tracker, files.best_model)
