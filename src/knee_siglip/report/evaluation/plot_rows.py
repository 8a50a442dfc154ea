"""Rows of the plots that page and `dvc plots` both show: one dict per point."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.metrics.grading import GRADES
from knee_siglip.report.evaluation.page_data import Row

CURVES = {"loss": "loss", "contrastive_accuracy": "contrastive accuracy"}
CURVE_SPLITS = ("train", "val", "val_ema")
"""Whose curves a training writes; `val_ema` is of the averaged weights, where there are any."""

RISK_POINTS = 200


def learning_curve_rows(live: Path | None) -> list[dict[str, Any]]:
    """(curve, split, step, value) of every point that DVCLive wrote below `live`; none where there is no such folder.

    What is no finite number, such as the half-written last line of a killed run, is left out.
    """
    if live is None:
        return []
    return [
        {"curve": curve, "split": split, "step": step, "value": value}
        for curve in CURVES
        for split in CURVE_SPLITS
        for step, value in _points(live / "plots" / "metrics" / split / f"{curve}.tsv", curve)
    ]


def confusion_rows(predictions: pd.DataFrame) -> list[dict[str, int]]:
    """(actual, predicted) of each graded image, as DVC's confusion template counts them."""
    graded = graded_rows(predictions)
    pairs = zip(graded["kl_grade"].astype(int), graded["kl_grade_predicted"].astype(int), strict=True)
    return [{"actual": int(actual), "predicted": int(predicted)} for actual, predicted in pairs]


def reliability_rows(calibration: Sequence[Row]) -> list[dict[str, Any]]:
    """(probabilities, confidence, accuracy, n) of each bin that has rows; probabilities: `raw` or `scaled`."""
    return [
        {
            "probabilities": str(row.get("probabilities", "raw")),
            "confidence": float(row["confidence"]),
            "accuracy": float(row["accuracy"]),
            "n": int(row["n"]),
        }
        for row in calibration
        if int(row["n"]) > 0
    ]


def risk_coverage_rows(curve: Sequence[Row]) -> list[dict[str, float]]:
    """(coverage, risk), rising, thinned to some hundred points with the ends kept."""
    ordered = sorted((float(row["coverage"]), float(row["risk"])) for row in curve)
    places = np.linspace(0, len(ordered) - 1, min(RISK_POINTS, len(ordered))).round().astype(int)
    return [{"coverage": ordered[place][0], "risk": ordered[place][1]} for place in places]


def graded_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """Those with a Kellgren-Lawrence grade 0-4; their index counts the rows of the split from 0."""
    rows = predictions.reset_index(drop=True)
    if not {"kl_grade", "kl_grade_predicted"} <= set(rows.columns):
        return rows.iloc[:0].assign(kl_grade=0, kl_grade_predicted=0)
    grades = pd.to_numeric(rows["kl_grade"], errors="coerce")
    return rows[grades.isin(range(GRADES)).fillna(False).astype(bool)]


def _points(path: Path, column: str) -> Iterator[tuple[int, float]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            try:
                step, value = int(row["step"]), float(row[column])
            except (KeyError, TypeError, ValueError):
                continue
            if math.isfinite(value):
                yield step, value
