"""An evaluation from files to files: checkpoint and cache in, metrics, predictions and plots out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knee_siglip.data.manifest import read_manifest
from knee_siglip.data.store import CachedPixels, open_pixels
from knee_siglip.errors import UserError
from knee_siglip.evaluation.probe import measure
from knee_siglip.evaluation.report import write_report
from knee_siglip.evaluation.split import EmbeddedSplit, embed_split
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint
from knee_siglip.model.device import pick_device
from knee_siglip.model.embedding import prompt_embeddings
from knee_siglip.params import EvaluateParams, Params, nest
from knee_siglip.tracking.tracker import attach_tracker


@dataclass(frozen=True)
class EvaluateFiles:
    """Where an evaluation reads and writes; `report` is a folder."""

    manifest: Path
    cache_facts: Path
    model: Path
    report: Path


def evaluate(params: Params, files: EvaluateFiles, device: str = "auto") -> dict[str, Any]:
    """Measure the checkpoint on the splits of `params.evaluate`, write the report, log the same figures.

    Returns:
        nested metrics, first the split, as in metrics.json.

    Raises:
        UserError: the checkpoint was trained on images prepared otherwise than the cache's, or a split is empty.
    """
    splits = embed_splits(params.evaluate, files, device)
    metrics = {split.name: nest(measure(split)) for split in splits}
    artifacts = write_report(splits, metrics, files.report)
    with attach_tracker(params, stage="evaluate", model_path=files.model) as tracker:
        # training has already logged its own `train.loss` and `val.loss`, of another epoch
        tracker.log_summary({name if name == "test" else f"evaluation.{name}": metrics[name] for name in metrics})
        for artifact in artifacts:
            tracker.log_artifact(artifact.path, kind=artifact.kind)
    return metrics


def embed_splits(params: EvaluateParams, files: EvaluateFiles, device: str = "auto") -> list[EmbeddedSplit]:
    """Every split once, in the order given; only their pixels are looked for in the store."""
    names = list(dict.fromkeys(params.splits))
    checkpoint = load_checkpoint(files.model, device=pick_device(device))
    manifest = read_manifest(files.manifest)
    manifest = manifest[manifest["split"].isin(names)].reset_index(drop=True)
    pixels = open_pixels(manifest, files.cache_facts)
    require_same_transform(checkpoint, pixels, files)
    grade_embeds = prompt_embeddings(checkpoint, [params.kl_prompts[grade] for grade in sorted(params.kl_prompts)])
    return [embed_split(name, manifest, pixels, checkpoint, grade_embeds, params.batch_size) for name in names]


def require_same_transform(checkpoint: Checkpoint, pixels: CachedPixels, files: EvaluateFiles) -> None:
    """Figures on images that the model was not made for would say nothing about it."""
    if checkpoint.transform != pixels.transform:
        raise UserError(
            f"{files.model} was trained on images prepared with {checkpoint.transform.to_dict()}, "
            f"but {files.cache_facts} describes {pixels.transform.to_dict()}; run dvc repro train"
        )
