"""Splits made of arithmetic, and a whole project in a folder: images, manifest, cache, checkpoint."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, SiglipTextConfig

from knee_siglip.data.manifest import write_manifest
from knee_siglip.data.store import build_cache
from knee_siglip.data.text import load_tokenizer
from knee_siglip.data.transform import Transform
from knee_siglip.evaluation.evaluate import EvaluateFiles
from knee_siglip.evaluation.measurement import measure, measure_headline, measure_split
from knee_siglip.evaluation.page_data import ModelFacts, PageData
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.evaluation.split import EmbeddedData, EmbeddedSplit, PromptEmbeds
from knee_siglip.model.checkpoint import Checkpoint, save_checkpoint
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.params import EvaluateParams, Params

TOKENIZER = Path(__file__).parents[2] / "src/knee_siglip/model/small/text"
POSITIONS = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def make_split() -> Callable[..., EmbeddedSplit]:
    """N pairs, two per patient, with `wordings` texts for each of the five grades; `noise` hides both in the image."""

    def make(
        count: int = 160, noise: float = 0.5, seed: int = 0, graded: bool = True, wordings: int = 1, **changes
    ) -> EmbeddedSplit:
        rng = np.random.default_rng(seed)
        grades, wording = rng.integers(0, 5, count), rng.integers(0, wordings, count)
        anchors = np.eye(5, 5 + wordings)
        meant = anchors[grades] + 0.5 * np.eye(wordings, 5 + wordings, k=5)[wording]
        rows = pd.DataFrame(
            {
                "img_path": [f"images/{row}.png" for row in range(count)],
                "image_id": [f"{row:064x}" for row in range(count)],
                "split": "test",
                "patient_id": [f"patient {row // 2}" for row in range(count)],
                "text": [
                    f"grade {grade}" + f" {word}" * (wordings > 1) for grade, word in zip(grades, wording, strict=True)
                ],
            }
        )
        if graded:
            rows["kl_grade"] = pd.array(grades, dtype="Int64")
        values = {
            "name": "test",
            "rows": rows,
            "image_embeds": unit(meant + noise * rng.normal(size=meant.shape)),
            "text_embeds": unit(meant),
            "numbers": np.arange(count),
            "prompts": PromptEmbeds([unit(anchors[grade : grade + 1]) for grade in range(5)], {}),
            "logit_scale": 10.0,
            "logit_bias": -2.0,
            "batch_size": 64,
        }
        return EmbeddedSplit(**(values | changes))

    return make


@pytest.fixture
def data_of() -> Callable[..., EmbeddedData]:
    """Splits as if they had been embedded: of black images, and without a checkpoint."""

    def make(*splits: EmbeddedSplit, **params) -> EmbeddedData:
        prompts = {str(grade): [f"grade {grade}"] for grade in range(5)}
        defaults = {"splits": [splits[0].name], "findings": {}, "kl_prompts": prompts}
        defaults |= {"robustness": False, "grounding": {"images": 0}}
        values = EvaluateParams(**defaults | params)
        pixels = np.zeros((max(len(split) for split in splits), 28, 28), dtype=np.uint8)
        return EmbeddedData(values, {split.name: split for split in splits}, checkpoint=None, pixels=pixels)

    return make


@pytest.fixture
def measured(data_of) -> Callable[..., dict[str, float]]:
    """The figures of a split that stands alone."""

    def figures(split: EmbeddedSplit) -> dict[str, float]:
        data = data_of(split)
        return measure(split, data) | measure_headline(predictions_of(split, data.params))

    return figures


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[EmbeddedData], PageData]:
    """All that is measured, as the report takes it."""

    def make(data: EmbeddedData) -> PageData:
        results = [measure_split(split, data, tmp_path / "no backbones") for split in data.evaluated]
        return PageData(results, ModelFacts({}), gallery=2)

    return make


@pytest.fixture
def files(tmp_path: Path) -> EvaluateFiles:
    """Twelve radiographs of noise (8 test, 4 val), a cache, and a model with random weights."""
    transform = Transform(image_size=28, fit="pad", contrast="none")
    files = EvaluateFiles(
        manifest=tmp_path / "manifest.parquet",
        cache_facts=tmp_path / "cache/cache.json",
        model=tmp_path / "best_model.pt",
        backbones=tmp_path / "backbones",
        live=tmp_path / "live",
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
