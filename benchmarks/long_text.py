"""python benchmarks/long_text.py [--epochs N] [--output FILE]

What 512 text positions instead of SigLIP's 64 do on the small preset (after `dvc repro`):

- the trained text encoder, its table stretched from 64 to 512: cosine between each impression's two embeddings;
- the whole training at 64 and at 512, same data, seed and steps: seconds, and what the test split says.

No figure here has a target: they are what README's advice stands on. Exits non-zero if a claim of the stretching fails:
the first positions must be those of the old table.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, conclude

from knee_siglip.cli.train import prepare, train_in
from knee_siglip.core import paths
from knee_siglip.encoders.siglip_text import WELL_TRAINED
from knee_siglip.evaluation.evaluate import EvaluateFiles, embed
from knee_siglip.evaluation.measurement import measure, measure_headline
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.model.checkpoint import load_checkpoint
from knee_siglip.model.embedding import embed_texts
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.tables.manifest import read_manifest

SHORT, LONG = 64, 512
REPORTED = (
    "contrastive_accuracy",
    "retrieval.image_to_text.recall_at_1",
    "zero_shot_kl.accuracy",
    "zero_shot_kl.quadratic_weighted_kappa",
)


def stretched_cosines() -> dict[str, float]:
    """Of the default run's model: how far stretching alone moves the impressions, and how much of the table stays."""
    texts = sorted(set(read_manifest()["text"]))
    checkpoint = load_checkpoint(paths.BEST_MODEL)
    encoder = checkpoint.model.text.model
    table = encoder.embeddings.position_embedding.weight.detach().clone()
    before = embed_texts(checkpoint, texts)
    checkpoint.model.text.extend_positions(LONG)
    checkpoint.params["model"]["max_text_length"] = LONG
    after = embed_texts(checkpoint, texts)
    new = encoder.embeddings.position_embedding.weight.detach()
    cosines = (before * after).sum(axis=1)
    return {
        "texts": len(texts),
        "mean": float(cosines.mean()),
        "least": float(cosines.min()),
        "first_positions_moved": float((new[:WELL_TRAINED] - table[:WELL_TRAINED]).abs().max()),
        "last_position_moved": float((new[-1] - table[-1]).abs().max()),
    }


def train_and_evaluate(length: int, epochs: int | None) -> dict[str, Any]:
    """The default run with so many text positions, in a folder of its own."""
    values = load_params().to_dict()
    values["model"]["max_text_length"], values["train"]["epochs"] = length, epochs
    values["tracking"] |= {"mlflow": "none", "wandb": "none"}
    params = Params.model_validate(values)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(params, folder)
        started = time.perf_counter()
        train_in(folder, "cpu")
        seconds = time.perf_counter() - started
        cache, model = folder / "cache/cache.json", folder / "best_model.pt"
        nowhere = folder / "not needed"
        files = EvaluateFiles(folder / "manifest.parquet", cache, model, nowhere, nowhere)
        data = embed(params, files, "cpu")
        test = data.splits["test"]
        figures = measure(test, data) | measure_headline(predictions_of(test, data.params))
    return {"training_seconds": seconds} | {figure: figures[figure] for figure in REPORTED}


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, help="instead of train.steps")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    cosines = stretched_cosines()
    runs = {str(length): train_and_evaluate(length, args.epochs) for length in (SHORT, LONG)}
    print(f"cosine of {cosines['texts']} impressions at {SHORT} and {LONG} positions, before any further training:")
    print(f"  mean {cosines['mean']:.3f}, least {cosines['least']:.3f}")
    for length, figures in runs.items():
        print(f"{length} positions: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    slower = runs[str(LONG)]["training_seconds"] / runs[str(SHORT)]["training_seconds"]
    print(f"training with {LONG} positions takes {slower:.1f} times as long")
    claims = [
        Claim(f"change of the first {WELL_TRAINED} positions", cosines["first_positions_moved"], "<=", 0),
        Claim("change of the last position, which is pooled", cosines["last_position_moved"], "<=", 0),
    ]
    facts = {"cosines": cosines, "runs": runs, "epochs": args.epochs, "times_slower": float(np.round(slower, 2))}
    conclude(claims, facts, args.output, "torch", "transformers")


if __name__ == "__main__":
    main()
