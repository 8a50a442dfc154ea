"""Who and what is in each split: counts and distributions for metrics.json, and which rows are one patient."""

from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.tables.manifest import SPLITS, number_groups
from knee_siglip.task.task import Labels, Task
from knee_siglip.validation.splits.leakage import id_key

DECIMALS = 4
"""Of figures in metrics.json: a diff shall show changes of the data, not of the last bit."""

VALUES_SHOWN = 20
"""Distinct views or sides that get a key of their own; a column of free text must not fill metrics.json."""


def cohort_metrics(table: pd.DataFrame, task: Task) -> dict[str, Any]:
    """Counts and distributions of each split, as nested numbers.

    table: what the checks get (split, patient_id, image_id, text; the rest where there is such a column). Rows whose
    image cannot be read (empty image_id) count as rows, not in the figures of images. What nothing is known of has no
    key: JSON knows no NaN.
    """
    kept = {column: _common(table[column]) for column in ("view", "side") if column in table.columns}
    return {split: _split_metrics(table[table["split"] == split], kept, task.labels) for split in SPLITS}


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """How many rows, and how many distinct known patients, images and texts they hold."""
    distinct = {
        "patients": rows["patient_id"].map(id_key),
        "images": rows["image_id"],
        "distinct_texts": rows["text"],
    }
    return {"rows": len(rows)} | {name: int(values[values != ""].nunique()) for name, values in distinct.items()}


def patient_numbers(table: pd.DataFrame) -> np.ndarray:
    """(N,) integers 0 ... P-1, equal for the rows of one patient; a row of an unknown patient is one of its own."""
    return number_groups(table.assign(patient_id=table["patient_id"].map(id_key)), "patient_id")


def text_words(table: pd.DataFrame) -> pd.Series:
    """Length of each normalised text in words."""
    return table["text"].map(lambda text: len(text.split())).astype("int64")


def _split_metrics(rows: pd.DataFrame, kept: dict[str, list[str]], labels: Labels) -> dict[str, Any]:
    images = rows[rows["image_id"] != ""].drop_duplicates("image_id")
    facts: dict[str, Any] = dict(counts(rows))
    if labels and labels.column in rows.columns:
        grades = np.array(labels.positions(rows[labels.column]))
        facts[f"{labels.column}s"] = {value: int((grades == grade).sum()) for grade, value in enumerate(labels.values)}
    for column, values in kept.items():
        facts[f"{column}s"] = _value_counts(rows[column], values)
    if len(rows):
        facts["text_words"] = _summary(text_words(rows), "mean", "median", "max")
    return facts | _image_metrics(images) | _images_per_patient(images)


def _image_metrics(images: pd.DataFrame) -> dict[str, Any]:
    """Distributions over distinct readable images."""
    if images.empty:
        return {}
    facts: dict[str, Any] = {}
    for column in ("width", "height"):
        if column in images.columns:
            facts[column] = _summary(images[column], "median", "min", "max")
    if "bits" in images.columns:
        facts["bits"] = {str(bits): int(count) for bits, count in images["bits"].value_counts().sort_index().items()}
    if {"mean", "std"} <= set(images.columns):
        facts["intensity"] = {name: _rounded(images[name].mean()) for name in ("mean", "std")}
    if "file_bytes" in images.columns:
        facts["file_bytes"] = _summary(images["file_bytes"], "median")
    return facts


def _images_per_patient(images: pd.DataFrame) -> dict[str, Any]:
    patients = images["patient_id"].map(id_key)
    known = patients[patients != ""]
    return {"images_per_patient": _summary(known.value_counts(), "mean", "max")} if len(known) else {}


def _summary(values: pd.Series, *statistics: str) -> dict[str, float]:
    return {name: _rounded(getattr(values, name)()) for name in statistics}


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS)


def _cells(column: pd.Series) -> pd.Series:
    """`AP ` and `ap` are one value; an empty cell is `unknown`."""
    return column.str.strip().str.lower().replace("", "unknown")


def _common(column: pd.Series) -> list[str]:
    """The most frequent values of the whole table, so that every split has the same keys."""
    frequencies = _cells(column).value_counts()
    ranked = sorted(frequencies.index, key=lambda value: (-frequencies[value], value))
    return sorted(ranked[:VALUES_SHOWN])


def _value_counts(column: pd.Series, values: list[str]) -> dict[str, int]:
    cells = _cells(column)
    found = {value: int((cells == value).sum()) for value in values}
    others = len(cells) - sum(found.values())
    return found | ({"other": others} if others else {})
