"""python stages/train.py

Reads the manifest, the cache and the backbones; writes models/{best,final}_model.pt and reports/train/.
"""

from knee_siglip import paths
from knee_siglip.errors import run_stage
from knee_siglip.params import load_params
from knee_siglip.training.run import TrainFiles, train


def main() -> None:
    """Train with params.yaml on the validated, cached data."""
    files = TrainFiles(
        manifest=paths.MANIFEST,
        cache_facts=paths.CACHE_FACTS,
        backbones=paths.BACKBONES,
        best_model=paths.BEST_MODEL,
        final_model=paths.FINAL_MODEL,
        report=paths.TRAIN_REPORT,
    )
    train(load_params(), files)


if __name__ == "__main__":
    run_stage(main)
