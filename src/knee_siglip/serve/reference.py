"""A drawn knee and its embedding, kept with a released model: other versions of the libraries must embed it alike."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import read_json, write_json
from knee_siglip.imaging.fit.transform import load_pixels
from knee_siglip.inference.predictor import Predictor

PICTURE, EMBEDDING = "reference.png", "reference.json"
SIZE = 512

LARGEST_DISTANCE = {None: 1e-3, torch.float16: 1e-2, torch.bfloat16: 0.1}
"""Euclidean, of unit vectors: what may be rounding, by `vision_dtype`. No similarity moves by more."""


def write_reference(predictor: Predictor, folder: Path) -> list[Path]:
    """Draw a knee and embed it in float32; returns the two files."""
    from knee_siglip.sample.findings import draw_labels
    from knee_siglip.sample.radiograph import draw_knee

    rng = np.random.default_rng(0)
    grey, _ = draw_knee(rng, draw_labels(rng, "left"), SIZE)
    Image.fromarray(grey).save(folder / PICTURE)
    versions = {name: version(name) for name in ("torch", "transformers", "pillow")}
    embedding = _embed(predictor, folder).tolist()
    write_json(folder / EMBEDDING, {"made_with": versions, "embedding": embedding})
    return [folder / PICTURE, folder / EMBEDDING]


def check_reference(predictor: Predictor, folder: Path) -> None:
    """Embed the reference in this folder again; without one there is nothing to check.

    Raises:
        UserError: the embedding has moved, so that every similarity of this model has.
    """
    kept = read_json(folder / EMBEDDING)
    if not kept:
        return
    distance = float(np.linalg.norm(_embed(predictor, folder) - np.asarray(kept["embedding"])))
    limit = LARGEST_DISTANCE[predictor.checkpoint.vision_dtype]
    if not distance <= limit:
        made = ", ".join(f"{name} {number}" for name, number in kept["made_with"].items())
        raise UserError(
            f"{folder / PICTURE} is not embedded as it was when this model was released: its distance is "
            f"{distance:.1e}, and at most {limit:g} is rounding; the answers differ too. It was made with {made}: "
            "install those"
        )


def _embed(predictor: Predictor, folder: Path) -> np.ndarray:
    """(D,) L2-normalised float64."""
    return predictor.embed_images(load_pixels(folder / PICTURE, predictor.transform)[None])[0].astype(np.float64)
