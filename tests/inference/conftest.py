"""A predictor whose model is arithmetic: an image's angle is its brightness, a text's is the number it ends with."""

from collections.abc import Callable, Sequence
from math import pi
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from embedded_splits import make_split
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.inference import predictor as predictor_module
from knee_siglip.inference.predictor import Predictor

__all__ = ["make_split"]

SCALE, BIAS = 10.0, -2.0


def at_brightness(values: np.ndarray) -> np.ndarray:
    """0-255 (B,) to unit vectors (B, 2) between 0 and 90 degrees."""
    angles = np.asarray(values, dtype=np.float32) / 255 * pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def embed_texts(checkpoint: object, texts: Sequence[str]) -> np.ndarray:
    return at_brightness(np.array([float(text.split()[-1]) for text in texts]))


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    checkpoint = SimpleNamespace(
        params={"evaluate": {"kl_prompts": {str(grade): [f"grade {grade * 60}"] for grade in range(5)}}},
        data_hash="",
        image_size=28,
        facts=None,
        likeness=None,
        vision_dtype=None,
        transform=Transform(image_size=28, fit="pad", contrast="none"),
        model=SimpleNamespace(
            logit_scale=torch.tensor(SCALE).log(),
            logit_bias=torch.tensor(BIAS),
            vision=SimpleNamespace(patch=14),
        ),
    )

    def embed_pixels(_: object, batches: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([at_brightness(batch.mean(axis=(1, 2))) for batch in batches])

    monkeypatch.setattr(predictor_module, "load_checkpoint", lambda path, device, precision: checkpoint)
    monkeypatch.setattr(predictor_module, "embed_pixels", embed_pixels)
    monkeypatch.setattr(predictor_module, "embed_texts", embed_texts)
    monkeypatch.setattr(Predictor, "digest", "of the fake")
    return Predictor(Path("fake.pt"), device="cpu")


@pytest.fixture
def grey_image(tmp_path: Path) -> Callable[[int], Path]:
    """Writes an image of one brightness and returns its path."""

    def write(brightness: int) -> Path:
        path = tmp_path / f"{brightness}.png"
        Image.new("L", (40, 30), brightness).save(path)
        return path

    return write
