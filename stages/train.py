"""Contrastive training on the validated, cached data, on one device or, by $KNEE_SIGLIP_LAUNCHER, on several.

    dvc repro train
    KNEE_SIGLIP_LAUNCHER="torchrun --nproc-per-node 4" dvc repro train

Reads the manifest, the cache and the backbones; writes models/{best,final}_model.pt and reports/train/. Killed, it goes
on where its last state was saved.
"""

import sys

from knee_siglip.core import paths
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.training.launch import hand_over


def main() -> None:
    """Train with params.yaml."""
    params = load_params()
    hand_over(sys.argv)
    # After the params are checked: torch and transformers take seconds to import.
    from knee_siglip.training.run import TrainFiles, train

    files = TrainFiles(
        manifest=paths.MANIFEST,
        cache_facts=paths.CACHE_FACTS,
        backbones=paths.BACKBONES,
        best_model=paths.BEST_MODEL,
        final_model=paths.FINAL_MODEL,
        report=paths.TRAIN_REPORT,
    )
    train(params, files)


if __name__ == "__main__":
    run_stage(main)
