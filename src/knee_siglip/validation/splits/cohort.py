"""Counts and distributions of each split for metrics.json."""

from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.tables.ids import id_keys
from knee_siglip.tables.manifest import ALL_SPLITS, SPLITS
from knee_siglip.task.task import Labels, Task

DECIMALS = 4
"""In metrics.json: a diff must show changes of the data, not of the last bit."""

VALUES_SHOWN = 20
"""Distinct views or sides with a key of their own; a column of free text must not fill metrics.json."""


def cohort_metrics(table: pd.DataFrame, task: Task) -> dict[str, Any]:
    """Counts and distributions of each split, as nested numbers.

    table: as the checks get it; view, side and the labels are optional. Rows whose image cannot be read (empty
    image_id) count as rows only. What is unknown has no key: JSON has no NaN.
    """
    # over the whole table, so that every split has the same keys
    shown = {column: _most_frequent(table[column]) for column in ("view", "side") if column in table.columns}
    there = [split for split in ALL_SPLITS if split in SPLITS or (table["split"] == split).any()]
    return {split: _split_metrics(table[table["split"] == split], shown, task.labels) for split in there}


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """Number of rows, and of distinct known patients, images and texts."""
    distinct = {"patients": id_keys(rows["patient_id"]), "images": rows["image_id"], "distinct_texts": rows["text"]}
    return {"rows": len(rows)} | {name: int(values[values != ""].nunique()) for name, values in distinct.items()}


def text_words(table: pd.DataFrame) -> pd.Series:
    """Length of each normalised text in words."""
    return table["text"].map(lambda text: len(text.split())).astype("int64")


def _split_metrics(rows: pd.DataFrame, shown: dict[str, list[str]], labels: Labels) -> dict[str, Any]:
    facts: dict[str, Any] = dict(counts(rows))
    if labels and labels.column in rows.columns:
        grades = np.array(labels.positions(rows[labels.column]))
        facts[f"{labels.column}s"] = {value: int((grades == grade).sum()) for grade, value in enumerate(labels.values)}
    for column, values in shown.items():
        cells = _cells(rows[column])
        facts[f"{column}s"] = {value: int((cells == value).sum()) for value in values}
        if others := int((~cells.isin(values)).sum()):
            facts[f"{column}s"]["other"] = others
    if len(rows):
        facts["text_words"] = _summary(text_words(rows), "mean", "median", "max")
    return facts | _image_metrics(rows[rows["image_id"] != ""].drop_duplicates("image_id"))


def _image_metrics(images: pd.DataFrame) -> dict[str, Any]:
    """Distributions over distinct readable images."""
    if images.empty:
        return {}
    metrics: dict[str, Any] = {
        "width": _summary(images["width"], "median", "min", "max"),
        "height": _summary(images["height"], "median", "min", "max"),
        "bits": {str(bits): int(count) for bits, count in images["bits"].value_counts().sort_index().items()},
        "intensity": {name: round(float(images[name].mean()), DECIMALS) for name in ("mean", "std")},
        "file_bytes": _summary(images["file_bytes"], "median"),
    }
    patients = id_keys(images["patient_id"])
    if (patients != "").any():
        metrics["images_per_patient"] = _summary(patients[patients != ""].value_counts(), "mean", "max")
    return metrics


def _summary(values: pd.Series, *statistics: str) -> dict[str, float]:
    return {name: round(float(values.agg(name)), DECIMALS) for name in statistics}


def _cells(column: pd.Series) -> pd.Series:
    """`AP ` and `ap` are one value; an empty cell is `unknown`."""
    return column.str.strip().str.lower().replace("", "unknown")


def _most_frequent(column: pd.Series) -> list[str]:
    counts = _cells(column).value_counts()
    return sorted(sorted(counts.index, key=lambda value: (-counts[value], value))[:VALUES_SHOWN])
