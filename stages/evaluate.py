"""Retrieval, zero-shot grading and calibration of the best model, with confidence intervals.

    dvc repro evaluate

Reads data/validated/manifest.parquet, data/cache/ (and the pixel store) and models/best_model.pt.
Writes reports/evaluation/: metrics.json, predictions.csv, plots/ (data for dvc plots) and figures/.
"""

from knee_siglip import paths
from knee_siglip.errors import run_stage
from knee_siglip.params import load_params


def main() -> None:
    """Run the stage."""
    params = load_params()
    # After the params are checked: torch, transformers and scikit-learn take seconds to import.
    from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate

    evaluate(params, EvaluateFiles(paths.MANIFEST, paths.CACHE_FACTS, paths.BEST_MODEL, paths.EVALUATION_REPORT))


if __name__ == "__main__":
    run_stage(main)
