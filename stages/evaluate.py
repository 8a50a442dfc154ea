"""Retrieval, zero-shot grades and findings, calibration, subgroups, robustness and grounding of the best model.

    dvc repro evaluate

Reads data/validated/manifest.parquet, data/cache/ (and the pixel store), models/best_model.pt and models/backbones/.
Writes reports/evaluation/: metrics.json, predictions.parquet, embeddings.parquet, tables/, plots/ (data for dvc plots)
and figures/; and for the page, which the report stage draws, facts.json, examples.json and pictures/.
"""

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.tracking.process import prepare_sender


def main() -> None:
    """Run the stage."""
    params = load_params()
    if params.tracking.mlflow != "none":
        prepare_sender("mlflow")
    # After the params are checked: torch, transformers and scikit-learn take seconds to import.
    from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate

    files = EvaluateFiles(
        manifest=paths.MANIFEST,
        cache_facts=paths.CACHE_FACTS,
        model=paths.BEST_MODEL,
        backbones=paths.BACKBONES,
        report=paths.EVALUATION_REPORT,
    )
    evaluate(params, files)


if __name__ == "__main__":
    run_stage(main)
