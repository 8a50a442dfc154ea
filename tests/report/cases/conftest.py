"""Forty images that a model was asked about: predictions, embeddings and image files as the other stages leave them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.params.tasks import saved_task
from knee_siglip.report.evaluation.results import SplitResults

COUNT = 40
NOWHERE = "no place changes its log-odds by 0.5"


def make_predictions() -> pd.DataFrame:
    """Images in pairs of a text and of a study; every tenth is graded wrong, number 10 by three grades."""
    rows = np.arange(COUNT)
    actual = rows % 4
    predicted = np.where(rows % 10 == 0, (actual + 1) % 5, actual)
    predicted[10] = actual[10] + 2
    table = pd.DataFrame(
        {
            "img_path": [f"images/<b>{row}.png" for row in rows],
            "image_id": [f"{row:064d}" for row in rows],
            "split": "test",
            "patient_id": rows.astype(str),
            "kl_grade": pd.array(actual, dtype="Int64"),
            "side": np.where(rows % 2, "left", "right"),
            "text": [f"text {row // 2} </script>" for row in rows],
            "text_id": rows // 2,
            "study_id": [f"s{row // 4}" for row in rows],
            "kl_grade_predicted": predicted,
            "image_to_text_rank": np.where(rows == 7, 3.0, 1.0),
            "image_to_text_recall_at_1": np.where(rows == 7, 0.0, 1.0),
            "finding_effusion_score": rows / 100,
            "finding_effusion_truth": rows % 5 == 0,
        }
    )
    for label in range(5):
        table[f"kl_probability_{label}"] = np.where(predicted == label, 0.6, 0.1)
    return table


def make_embeddings(predictions: pd.DataFrame) -> pd.DataFrame:
    """A direction for each text."""
    embeds = list(np.eye(COUNT, dtype=np.float32)[predictions["text_id"]])
    return predictions[["image_id", "split"]].assign(image_embed=embeds, text_embed=embeds)


@pytest.fixture
def split() -> SplitResults:
    return SplitResults("test", saved_task({}), {})


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """A folder of reports with predictions and embeddings."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    predictions = make_predictions()
    predictions.to_parquet(folder / "predictions.parquet")
    make_embeddings(predictions).to_parquet(folder / "embeddings.parquet")
    hot_corner = [[2.5, 0.0], [0.0, -1.0]]
    maps = [
        {"row": 10, "title": "effusion", "missing": "", "heat": hot_corner, "full": 3.0},
        {
            "row": 10,
            "title": "KL grade 4 rather than 2",
            "missing": NOWHERE,
            "heat": [[0.1] * 2] * 2,
            "full": 3.0,
        },
    ]
    (folder / "examples.json").write_text(json.dumps({"case_maps": maps}))
    return folder


@pytest.fixture
def image_files(tmp_path: Path) -> dict[str, str]:
    """A file for every image but the last two: number 38 has none, 39 is damaged."""
    files = {}
    for row in range(COUNT - 2):
        path = tmp_path / f"{row}.png"
        Image.fromarray(np.full((640, 600), 6 * row, np.uint8)).save(path)
        files[f"{row:064d}"] = str(path)
    damaged = tmp_path / "39.png"
    damaged.write_bytes(b"no image")
    return files | {f"{39:064d}": str(damaged)}
