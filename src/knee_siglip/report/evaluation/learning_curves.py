"""The learning curves as DVCLive wrote them during training."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CURVES = {"loss": "loss", "contrastive_accuracy": "contrastive accuracy"}
CURVE_SPLITS = ("train", "val", "val_ema")
"""Whose curves a training writes; `val_ema` is of the averaged weights, where there are any."""


def learning_curve_rows(live: Path) -> list[dict[str, Any]]:
    """Read (curve, split, step, value) of every point below `live`; none where there is no such folder.

    What is no finite number, such as the half-written last line of a killed run, is left out.
    """
    return [
        {"curve": curve, "split": split, "step": step, "value": value}
        for curve in CURVES
        for split in CURVE_SPLITS
        for step, value in _points(live / "plots" / "metrics" / split / f"{curve}.tsv", curve)
    ]


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
