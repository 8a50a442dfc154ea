"""Splits made of arithmetic, as if they had been embedded, and what is measured on them: shared fixtures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit, PromptEmbeds
from knee_siglip.evaluation.measurement import measure, measure_headline, measure_split
from knee_siglip.evaluation.outputs import Artifact, write_results
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.params.sections import EvaluateParams
from knee_siglip.task.task import Finding
from toys import KNEE


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def make_split() -> Callable[..., EmbeddedSplit]:
    """N pairs, two per patient, with `wordings` texts for each of the five grades; `noise` hides both in the image."""

    def make(
        count: int = 160,
        noise: float = 0.5,
        seed: int = 0,
        graded: bool = True,
        wordings: int = 1,
        findings: Mapping[str, Finding] | None = None,
        label_prompts: Sequence[Sequence[str]] = tuple([f"grade {grade}"] for grade in range(5)),
        **changes,
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
            "task": replace(KNEE, label_prompts=label_prompts, findings=findings or {}),
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
        defaults = {"splits": [splits[0].name], "robustness": False, "grounding": {"images": 0}}
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
def write(tmp_path: Path) -> Callable[..., list[Artifact]]:
    """Measure every evaluated split and write the results, by default to `report` in the test's folder."""

    def measure_and_write(data: EmbeddedData, folder: Path = tmp_path / "report") -> list[Artifact]:
        results = [measure_split(split, data, tmp_path / "no backbones") for split in data.evaluated]
        return write_results(data, results, {}, folder)

    return measure_and_write
