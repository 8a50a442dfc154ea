"""Retrieval, zero-shot grades and findings, calibration, subgroups, robustness and grounding of the best model.

    dvc repro evaluate

Reads data/validated/manifest.parquet, data/cache/ (and the pixel store), models/best_model.pt, models/backbones/ and
the curves in reports/train/live. Writes reports/evaluation/: index.html (the page to read), metrics.json,
predictions.parquet, embeddings.parquet, tables/, plots/ (data for dvc plots) and figures/.
"""

from knee_siglip.core import paths
from knee_siglip.core.errors import run_stage
from knee_siglip.params.files import load_params


def main() -> None:
    """Run the stage."""
    params = load_params()
    # After the params are checked: torch, transformers and scikit-learn take seconds to import.
    from knee_siglip.evaluation.evaluate import EvaluateFiles, evaluate

    files = EvaluateFiles(
        manifest=paths.MANIFEST,
        cache_facts=paths.CACHE_FACTS,
        model=paths.BEST_MODEL,
        backbones=paths.BACKBONES,
        live=paths.TRAIN_REPORT / "live",
        report=paths.EVALUATION_REPORT,
    )
    evaluate(params, files)


if __name__ == "__main__":
    run_stage(main)
