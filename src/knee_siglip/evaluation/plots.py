"""The data of `dvc plots`, and the confusion matrix as a picture for the trackers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.evaluation.measurement import MeasuredSplit

RECALL_CURVE = range(1, 51)

PLOTS = {
    "confusion": ("actual", "predicted"),
    "retrieval": ("k", "image_to_text", "text_to_image"),
    "reliability": ("confidence", "accuracy", "n"),
    "reliability_scaled": ("confidence", "accuracy", "n"),
    "risk_coverage": ("coverage", "risk"),
}
"""Columns of each plots/*.csv, which a table without rows has as well: `dvc plots` asks for them."""


def plot_rows(measured: MeasuredSplit) -> dict[str, Sequence[Mapping[str, Any]]]:
    """One row per point of each plot; the confusion has one per graded image, as DVC's template counts them itself."""
    split, bins = measured.split, measured.tables["calibration"]
    labels = split.task.labels
    return {
        "confusion": [
            {"actual": labels.cell(actual), "predicted": labels.cell(predicted)}
            for actual, predicted in zip(split.grades, split.predicted[split.graded], strict=True)
        ],
        "retrieval": [
            {"k": k, **{name: float(found.recall_at(k).mean()) for name, found in split.searches.items()}}
            for k in RECALL_CURVE
        ],
        "reliability": [row for row in bins if row["probabilities"] == "raw"],
        "reliability_scaled": [row for row in bins if row["probabilities"] == "scaled"],
        "risk_coverage": measured.tables["risk_coverage"],
    }


def draw_confusion(split: EmbeddedSplit, path: Path) -> None:
    """Draw the counts per actual and predicted grade; the shade is the share within the actual grade."""
    labels = split.task.labels
    counts = confusion_matrix(split.grades, split.predicted[split.graded], labels=range(len(labels)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (actual, predicted), count in np.ndenumerate(counts):
        shade = "white" if shares[actual, predicted] > 0.5 else "black"
        axes.text(predicted, actual, str(count), ha="center", va="center", color=shade)
    places, short = range(len(labels)), split.task.label_short
    axes.set(xticks=places, yticks=places, xticklabels=labels.values, yticklabels=labels.values)
    axes.set(xlabel=f"zero-shot {short}", ylabel=f"actual {short}")
    axes.set_title(f"{len(split.graded)} images")
    figure.colorbar(image, label="share of the actual grade")
    figure.savefig(path, metadata={"Software": None})  # the library's version would change the file's hash
