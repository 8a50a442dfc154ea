"""What an evaluation leaves on disk: metrics, one row per image, tables, the plots' data and the page."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.predictions import embeddings_table, write_predictions
from knee_siglip.metrics.grading import GRADES, grade_confusion
from knee_siglip.report.evaluation.page import write_page
from knee_siglip.report.evaluation.page_data import PageData, SplitResults
from knee_siglip.report.evaluation.plot_rows import confusion_rows, graded_rows, reliability_rows, risk_coverage_rows

RECALL_CURVE = range(1, 51)

PLOTS = {
    "kl_confusion": ("actual", "predicted"),
    "retrieval": ("k", "image_to_text", "text_to_image"),
    "reliability": ("confidence", "accuracy", "n"),
    "reliability_scaled": ("confidence", "accuracy", "n"),
    "risk_coverage": ("coverage", "risk"),
}
"""Of plots/*.csv the columns, which also a table without rows has: `dvc plots` asks for them."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A written file; `kind` is what the tracker calls it."""

    path: Path
    kind: str


def write_report(data: EmbeddedData, page: PageData, folder: Path) -> list[Artifact]:
    """Write everything; plots and page show the test split, or the first one where test was not evaluated."""
    shown = page.shown
    metrics = {split.name: split.metrics for split in page.splits}
    for place in (folder / "plots", folder / "tables", folder / "figures"):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_predictions(pd.concat([split.predictions for split in page.splits]), folder / "predictions.parquet")
    write_predictions(embeddings_table(data), folder / "embeddings.parquet")
    write_page(folder / "index.html", page)
    tables = [*_write_plots(shown, data.splits[shown.name], folder / "plots"), *_write_tables(page, folder / "tables")]
    figures = _write_figures(shown, folder / "figures")
    return [
        *(Artifact(folder / name, "table") for name in ("metrics.json", "predictions.parquet", "embeddings.parquet")),
        Artifact(folder / "index.html", "report"),
        *(Artifact(path, "table") for path in tables),
        *(Artifact(path, "figure") for path in figures),
    ]


def recall_curve(split: EmbeddedSplit) -> list[dict[str, float]]:
    """Recall at `k` = 1 ... 50, a column for each direction."""
    return [
        {"k": k, **{name: float(found.recall_at(k).mean()) for name, found in split.searches.items()}}
        for k in RECALL_CURVE
    ]


def draw_confusion(predictions: pd.DataFrame, path: Path) -> None:
    """Counts per actual and predicted grade; the shade is the share within the actual grade."""
    graded = graded_rows(predictions)
    counts = grade_confusion(graded["kl_grade"].to_numpy(dtype=int), graded["kl_grade_predicted"].to_numpy(dtype=int))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (actual, predicted), count in np.ndenumerate(counts):
        shade = "white" if shares[actual, predicted] > 0.5 else "black"
        axes.text(predicted, actual, str(count), ha="center", va="center", color=shade)
    axes.set(xticks=range(GRADES), yticks=range(GRADES), xlabel="zero-shot KL grade", ylabel="actual KL grade")
    axes.set_title(f"{len(graded)} images")
    figure.colorbar(image, label="share of the actual grade")
    figure.savefig(path, metadata={"Software": None})  # the library's version would change the file's hash


def _write_plots(shown: SplitResults, split: EmbeddedSplit, folder: Path) -> list[Path]:
    bins = reliability_rows(shown.table("calibration"))
    rows: dict[str, Sequence[Row]] = {
        "kl_confusion": confusion_rows(shown.predictions),
        "retrieval": recall_curve(split),
        "reliability": [row for row in bins if row["probabilities"] == "raw"],
        "reliability_scaled": [row for row in bins if row["probabilities"] == "scaled"],
        "risk_coverage": risk_coverage_rows(shown.table("risk_coverage")),
    }
    return [_write_table(rows[name], columns, folder / f"{name}.csv") for name, columns in PLOTS.items()]


def _write_tables(page: PageData, folder: Path) -> list[Path]:
    """One file for each table that any split has; its first column is the split."""
    names = dict.fromkeys(name for split in page.splits for name, rows in split.tables.items() if rows)
    paths = []
    for name in names:
        rows = [{"split": split.name, **row} for split in page.splits for row in split.table(name)]
        columns = dict.fromkeys(column for row in rows for column in row)
        paths.append(_write_table(rows, list(columns), folder / f"{name}.csv"))
    return paths


def _write_figures(shown: SplitResults, folder: Path) -> list[Path]:
    """The confusion matrix, where there are grades, and the maps of the grounding."""
    paths = []
    if len(graded_rows(shown.predictions)):
        paths.append(folder / "kl_confusion.png")
        draw_confusion(shown.predictions, paths[-1])
    for number, (_, content) in enumerate(shown.overlays, start=1):
        paths.append(folder / f"grounding_{number}.jpg")
        paths[-1].write_bytes(content)
    return paths


def _write_table(rows: Sequence[Row], columns: Sequence[str], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
