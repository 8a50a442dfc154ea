"""The images of an evaluated split as cases: what is known of each, what the model said, and what it looks like."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.metrics.categories import category_columns
from knee_siglip.metrics.matching.similarity import similar_texts
from knee_siglip.tables.manifest import number_groups
from knee_siglip.task.task import Task

CASES_SHOWN = 2000
"""Above so many images the browser shows every mistake, worst first, and a sample of the rest up to this number."""

SEED = 0
NOT_CATEGORIES = {"img_path", "image_id", "split", "patient_id", "text", "study_id", "text_id", "contrastive_batch"}

MAP_KEYS = ("title", "heat", "missing", "full")

Case = dict[str, Any]


@dataclass(frozen=True)
class CaseList:
    """The cases that are shown, the columns they can be filtered by, and how many images there are in all."""

    cases: Sequence[Case]
    columns: Sequence[str]
    total: int


def list_cases(
    predictions: pd.DataFrame, embeddings: pd.DataFrame, task: Task, maps: Sequence[Mapping[str, Any]] = ()
) -> CaseList:
    """Cases of one split.

    predictions, embeddings: the split's N rows of the files of these names, in the same order. maps: of single rows, as
    evaluation wrote them.

    Returns:
        of each case `row` (its number in the split), `image_id`, `file`, `text`, `categories` (column to value),
        `retrieved` (whether a right text came first), `rank` (of the first right text), `found` (the most similar
        texts), `findings` (name, score, truth), `maps` (title, heat, missing, full), and where there are grades
        `actual`, `predicted`, `error` (grades between them; None where the reader gave none), `confidence` and
        `probabilities`, in order of the labels.
    """
    assert list(predictions["image_id"]) == list(embeddings["image_id"])
    shown = _chosen(predictions, task)
    others = NOT_CATEGORIES | ({task.labels.column, task.labels.predicted} if task.labels else set())
    columns = category_columns(predictions, others)
    rows = predictions.iloc[shown]
    images, embeds = np.stack(list(embeddings["image_embed"])), np.stack(list(embeddings["text_embed"]))
    text_ids, studies = predictions["text_id"].to_numpy(), number_groups(predictions, "study_id")
    found = similar_texts(shown, images, embeds, predictions["text"].tolist(), text_ids, studies)
    findings = [match[1] for name in predictions if (match := re.fullmatch("finding_(.*)_score", str(name)))]
    cases = []
    for number, texts, cells in zip(shown.tolist(), found, rows.to_dict("records"), strict=True):
        record = {str(name): cell for name, cell in cells.items()}
        cases.append(
            {
                "row": number,
                "image_id": record["image_id"],
                "file": record["img_path"],
                "text": record["text"],
                "categories": {column: "" if pd.isna(record[column]) else str(record[column]) for column in columns},
                "retrieved": record["image_to_text_recall_at_1"] >= 0.5,
                "rank": round(record["image_to_text_rank"], 1),
                "found": texts,
                "findings": [_finding(name, record) for name in findings],
                "maps": [{key: own[key] for key in MAP_KEYS} for own in maps if own["row"] == number],
                **_grading(record, task),
            }
        )
    return CaseList(cases, columns, len(predictions))


def _chosen(predictions: pd.DataFrame, task: Task) -> np.ndarray:
    """Row numbers of the cases, in order: all, or the worst mistakes and a drawn sample."""
    if len(predictions) <= CASES_SHOWN:
        return np.arange(len(predictions))
    severity = np.where(predictions["image_to_text_recall_at_1"] < 0.5, 0.5, 0.0)
    if task.labels and task.labels.column in predictions:
        actual = np.array(task.labels.positions(predictions[task.labels.column]))
        predicted = np.array(task.labels.positions(predictions[task.labels.predicted]))
        severity += np.where(actual < 0, 0, np.abs(predicted - actual))
    drawn = np.random.default_rng(SEED).permutation(len(predictions))
    order = drawn[np.argsort(-severity[drawn], kind="stable")]
    return np.sort(order[:CASES_SHOWN])


def _grading(record: dict[str, Any], task: Task) -> dict[str, Any]:
    if not task.labels or task.labels.predicted not in record:
        return {}
    labels = task.labels
    actual, predicted = labels.position(record.get(labels.column)), labels.position(record[labels.predicted])
    probabilities = [round(float(record[name]), 3) for name in labels.probabilities]
    return {
        "actual": labels.values[actual] if actual >= 0 else None,
        "predicted": labels.values[predicted],
        "error": abs(predicted - actual) if actual >= 0 else None,
        "confidence": probabilities[predicted],
        "probabilities": probabilities,
    }


def _finding(name: str, record: dict[str, Any]) -> dict[str, Any]:
    truth = record.get(f"finding_{name}_truth")
    score = round(float(record[f"finding_{name}_score"]), 3)
    return {"name": name, "score": score, "truth": None if pd.isna(truth) else bool(truth)}
