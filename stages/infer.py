"""Batch inference with the best model.

    dvc repro infer

Reads models/best_model.pt and `infer.csv_path` (by default the test rows of data/validated/manifest.parquet).
Writes reports/inference/: results.csv, studies.csv, embeddings.npy, embedding_ids.csv, metrics.json (counts) and
speed.json.
An unreadable image is a row with its error in `status` and is counted as `failed`; the stage ends well.
"""

import sys
from pathlib import Path

from knee_siglip.core import paths
from knee_siglip.core.metrics_file import write_metrics
from knee_siglip.core.nesting import flatten
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.params.tasks import task_of
from knee_siglip.tracking.process import prepare_sender


def main() -> None:
    """Run the stage."""
    params = load_params()
    if params.tracking.mlflow != "none":
        prepare_sender("mlflow")
    # After the params are checked: torch and transformers take seconds to import.
    from knee_siglip.inference.batch import infer_batch
    from knee_siglip.inference.outputs import Outputs
    from knee_siglip.inference.predictor import Predictor
    from knee_siglip.inference.rows import read_rows
    from knee_siglip.tables.watched import outside_images
    from knee_siglip.tracking.tracker import attach_tracker

    table = read_rows(Path(params.infer.csv_path), params.infer.split)
    if Path(params.infer.csv_path) != paths.MANIFEST:  # whose images validate depends on
        _, warning = outside_images((file for _, file in table if file), params.infer.images, "infer.images")
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    outputs = Outputs.beside(paths.INFERENCE_REPORT / "results.csv")
    # not the checkpoint's task: prompts that were changed since training count, as they do in evaluate
    predictor = Predictor(paths.BEST_MODEL, precision=params.infer.precision, task=task_of(params))
    queries = params.infer.queries or predictor.task.queries
    summary = infer_batch(predictor, table, queries, outputs, params.infer.batch_size)
    metrics = summary.metrics()
    write_metrics(paths.INFERENCE_REPORT / "metrics.json", metrics)
    write_metrics(paths.INFERENCE_REPORT / "speed.json", summary.speed())
    model, data_hash = predictor.digest, predictor.checkpoint.data_hash
    with attach_tracker(params, stage="infer", model=model, figures=metrics, data_hash=data_hash) as tracker:
        tracker.log_summary(flatten(metrics, "infer."))
        tracker.log_artifact(outputs.results, kind="patients", folder="inference")


if __name__ == "__main__":
    run_stage(main)
