"""python stages/sample.py

Reads `sample` of params.yaml; draws the synthetic knees of the embedded default into data/sample/ (images/, train.csv).
"""

from knee_siglip.core.paths import SAMPLE
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params


def main() -> None:
    """Draw the sample data."""
    sample = load_params().sample
    from knee_siglip.sample.dataset import write_sample

    write_sample(SAMPLE, patients=sample.patients, seed=sample.seed, size=sample.size)


if __name__ == "__main__":
    run_stage(main)
