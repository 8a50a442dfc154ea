"""A whole project in a folder: images, manifest, cache, checkpoint."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, SiglipTextConfig

from embedded_splits import data_of, make_split, measured, write
from knee_siglip.evaluation.evaluate import EvaluateFiles
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint, save_checkpoint
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.params.sections import Params
from knee_siglip.store.pixels import build_cache
from knee_siglip.tables.manifest import write_manifest
from knee_siglip.tables.text import load_tokenizer

__all__ = ["data_of", "make_split", "measured", "write"]

TOKENIZER = Path(__file__).parents[2] / "src/knee_siglip/encoders/small/text"
POSITIONS = 16


@pytest.fixture
def files(tmp_path: Path, one_core: None) -> EvaluateFiles:
    """Twelve radiographs of noise (8 test, 4 val), a cache, and a model with random weights."""
    transform = Transform(image_size=28, fit="pad", contrast="none")
    files = EvaluateFiles(
        manifest=tmp_path / "manifest.parquet",
        cache_facts=tmp_path / "cache/cache.json",
        model=tmp_path / "best_model.pt",
        backbones=tmp_path / "backbones",
        report=tmp_path / "report",
    )
    manifest = _manifest(tmp_path)
    write_manifest(manifest, files.manifest)
    build_cache(manifest, transform, tmp_path / "cache/index.parquet", files.cache_facts)
    checkpoint = Checkpoint(_model(), load_tokenizer(TOKENIZER), transform, {"model": {"max_text_length": POSITIONS}})
    save_checkpoint(checkpoint, files.model)
    return files


@pytest.fixture
def params() -> Params:
    """The defaults without trackers."""
    return Params.model_validate({"tracking": {"mlflow": "none", "wandb": "none"}})


def _manifest(folder: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (30, 30), dtype=np.uint8)).save(path)
        rows.append(
            {
                "img_path": path.name,
                "split": "test" if number < 8 else "val",
                "patient_id": str(number // 2),
                "kl_grade": number % 5 if number else None,
                "image_file": str(path),
                "image_id": hashlib.sha256(path.read_bytes()).hexdigest(),
                "width": 30,
                "height": 30,
                "bits": 8,
                "text": f"{['normal', 'mild', 'severe'][number % 3]} knee",
                "flags": "",
            }
        )
    return pd.DataFrame(rows).astype({"kl_grade": "Int64"})


def _model() -> KneeRadDinoSigLIPModel:
    torch.manual_seed(0)
    vision = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        use_mask_token=False,
    )
    text = SiglipTextConfig(
        vocab_size=len(load_tokenizer(TOKENIZER)),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=1,
    )
    return KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig(vision, text, bias_init=-2.0))
