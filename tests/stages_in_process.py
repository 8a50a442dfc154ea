"""All stages one after the other in this process: seconds in place of DVC's minute."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from knee_siglip.cli.train import prepare, train_in
from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate
from knee_siglip.inference.batch import infer_batch
from knee_siglip.inference.outputs import Outputs
from knee_siglip.inference.predictor import Predictor
from knee_siglip.inference.rows import read_rows
from knee_siglip.params.files import parse_params
from knee_siglip.report.write import ReportFiles, write_report

ROOT = Path(__file__).parents[1]

WITHOUT_TRACKERS = {"mlflow": "none", "wandb": "none"}


def run_stages(out: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run every stage into a folder; the metrics of the test split. No tracker's process is started."""
    params = parse_params({"tracking": WITHOUT_TRACKERS} | values)
    with patch("knee_siglip.tracking.tracker.start_senders", return_value=[]):
        prepare(params, out)
        train_in(out, "cpu")
        report = ReportFiles(
            out / "reports/validation", out / "reports/train", out / "evaluation", out / "headline.json"
        )
        model, cache = out / "best_model.pt", out / "cache/cache.json"
        files = EvaluateFiles(out / "manifest.parquet", cache, model, out / "backbones", report.evaluation)
        evaluate(params, files, "cpu")
        write_report(params, report)
        predictor = Predictor(model, device="cpu")
        table = read_rows(out / "manifest.parquet", "test")
        infer_batch(predictor, table, predictor.task.queries, Outputs.beside(out / "results.csv"), 8)
    return json.loads((out / "evaluation/metrics.json").read_text())["test"]
