"""Evaluate a checkpoint: read it and the cache, write metrics, tables and pictures."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import sha256
from knee_siglip.core.metrics_file import finite, read_json
from knee_siglip.core.paths import EXTERNAL_MANIFEST
from knee_siglip.evaluation.embedded import EmbeddedData, embed_prompts, embed_split
from knee_siglip.evaluation.findings import require_column
from knee_siglip.evaluation.split_metrics import Metrics, count_rows
from knee_siglip.model.checkpoint import load_checkpoint
from knee_siglip.model.device import pick_device
from knee_siglip.model.training_facts import heard
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.store.pixels import CachedPixels, open_pixels
from knee_siglip.tables.manifest import ALL_SPLITS, EXTERNAL, read_manifest
from knee_siglip.task.task import Task
from knee_siglip.tracking.records import git_revision
from knee_siglip.tracking.tracker import attach_tracker

logger = logging.getLogger(__name__)

NOT_OF_THE_MODEL = {"infer", "tracking"}
"""Sections of params.yaml that change neither the model nor what is measured on it."""


@dataclass(frozen=True)
class EvaluateFiles:
    """Where an evaluation reads and writes; `backbones` and `report` are folders.

    backbones: the encoders before the training. Where they are missing, their baseline is left out.
    """

    manifest: Path
    cache_facts: Path
    model: Path
    backbones: Path
    report: Path

    @property
    def external(self) -> Path:
        """Manifest of the second test set; it may be missing or have no rows."""
        return self.manifest.with_name(EXTERNAL_MANIFEST.name)


def evaluate(params: Params, files: EvaluateFiles, device: str = "auto") -> dict[str, Metrics]:
    """Measure the checkpoint on the splits of `params.evaluate`, write the results, log the same metrics.

    Returns:
        metrics by split and dotted name.

    Raises:
        UserError: the checkpoint was trained on images prepared otherwise than the cache's, or a split is empty.
    """
    data = embed(params, files, device)
    # Here, so that embedding starts without waiting for scikit-learn and matplotlib.
    from knee_siglip.evaluation.measurement import measure_split
    from knee_siglip.evaluation.outputs import write_results

    results = [measure_split(split, data, files.backbones) for split in data.evaluated]
    facts = model_facts(params, data, files.model)
    artifacts = write_results(data, results, facts, files.report)
    metrics = {result.name: result.metrics for result in results}
    figures, data_hash = read_json(files.report / "metrics.json"), data.checkpoint.data_hash
    model = facts["model_sha256"]
    with attach_tracker(params, stage="evaluate", model=model, figures=figures, data_hash=data_hash) as tracker:
        # training has already logged its own `train.loss` and `val.loss`, of another epoch
        tracker.log_summary({name if name == "test" else f"evaluation.{name}": metrics[name] for name in metrics})
        for artifact in artifacts:
            tracker.log_artifact(artifact.path, artifact.kind, artifact.folder)
    return metrics


def model_facts(params: Params, data: EmbeddedData, model_path: Path) -> dict[str, Any]:
    """What made the model and its data, for facts.json: `revision` is of the code, None outside git."""
    checkpoint, used = data.checkpoint, set(chain(*data.evaluated[0].task.label_prompts))
    return {
        "params": {name: values for name, values in params.to_dict().items() if name not in NOT_OF_THE_MODEL},
        "revision": git_revision(),
        "data_hash": checkpoint.data_hash,
        "model_sha256": sha256(model_path),
        "cache": data.pixels.transform.to_dict(),
        "checkpoint": {
            "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
            "saved_at": finite(checkpoint.metrics),
            "trained_with": checkpoint.versions,
        },
        "left_out_prompts": [prompt for prompt in chain(*task_of(params).label_prompts) if prompt not in used],
        "counts": {name: count_rows(split, data) for name, split in data.splits.items()},
    }


def embed(params: Params, files: EvaluateFiles, device: str = "auto") -> EmbeddedData:
    """All rows of the manifest, embedded: the other splits are what baselines and probes learn from.

    Raises:
        UserError: the checkpoint was trained on images prepared otherwise than the cache's, or a split that is to be
            evaluated is empty.
    """
    wanted, task = params.evaluate, task_of(params)
    checkpoint = load_checkpoint(files.model, pick_device(device), wanted.precision)
    manifest = _with_external(read_manifest(files.manifest), files.external)
    if missing := sorted(set(wanted.splits) - set(manifest["split"])):
        raise UserError(f"params.yaml: evaluate.splits names {missing[0]}, but no row of the manifest is in that split")
    require_columns(wanted.subgroup_columns(task.labels.column), task, manifest)
    manifest, pixels = _open_what_is_there(manifest, [*wanted.splits, EXTERNAL], files)
    if checkpoint.transform != pixels.transform:
        raise UserError(
            f"{files.model} was trained on images prepared with {checkpoint.transform.to_dict()}, "
            f"but {files.cache_facts} describes {pixels.transform.to_dict()}; run dvc repro train"
        )
    task = heard(task, checkpoint.facts)
    prompts = embed_prompts(checkpoint, task)
    splits = {
        name: embed_split(name, manifest, pixels, checkpoint, task, prompts, wanted.batch_size)
        for name in ALL_SPLITS
        if (manifest["split"] == name).any()
    }
    return EmbeddedData(wanted, splits, checkpoint, pixels)


def _with_external(manifest: pd.DataFrame, external: Path) -> pd.DataFrame:
    """The manifest with the rows of the second test set behind it."""
    rows = read_manifest(external) if external.is_file() else manifest[:0]
    return pd.concat([manifest, rows], ignore_index=True) if len(rows) else manifest


def _open_what_is_there(
    manifest: pd.DataFrame, evaluated: Sequence[str], files: EvaluateFiles
) -> tuple[pd.DataFrame, CachedPixels]:
    """The manifest with its pixels, or the evaluated splits alone where images of the others are missing."""
    try:
        return manifest, open_pixels(manifest, files.cache_facts)
    except UserError as error:
        rows = manifest[manifest["split"].isin(evaluated)].reset_index(drop=True)
        if len(rows) == len(manifest):
            raise
        pixels = open_pixels(rows, files.cache_facts)
        logger.warning("evaluated without what is learnt from the other splits, whose images are missing: %s", error)
        return rows, pixels


def require_columns(subgroups: Sequence[str], task: Task, manifest: pd.DataFrame) -> None:
    """Check what params.yaml names before minutes of embedding.

    Raises:
        UserError: a column of `subgroups` or `findings` that the CSV has not.
    """
    # what the default names is there where the CSV, or the texts, tell it
    optional = ("side", "view", task.labels.column)
    if missing := [name for name in subgroups if name not in manifest and name not in optional]:
        raise UserError(f"params.yaml: evaluate.subgroups names {missing[0]}, but the CSV has no such column")
    for name, finding in task.findings.items():
        require_column(name, finding, manifest)
