"""What an evaluation leaves on disk: metrics, one row per image, and the plots' data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from knee_siglip.evaluation.split import EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.zero_shot import GRADES, grade_confusion

RECALL_CURVE = range(1, 51)


@dataclass(frozen=True)
class Artifact:
    """A written file; `kind` is what the tracker calls it."""

    path: Path
    kind: str


def write_report(data: EmbeddedData, metrics: dict[str, Any], folder: Path) -> list[Artifact]:
    """Write everything; the plots show the test split, or the first one where test was not evaluated."""
    splits = data.evaluated
    shown = next((split for split in splits if split.name == "test"), splits[0])
    plots, figures = folder / "plots", folder / "figures"
    for place in (plots, figures):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_table(pd.concat([predictions(split) for split in splits], ignore_index=True), folder / "predictions.csv")
    _write_table(confusion_rows(shown), plots / "kl_confusion.csv")
    _write_table(recall_curve(shown), plots / "retrieval.csv")
    artifacts = [
        Artifact(folder / "metrics.json", "table"),
        Artifact(folder / "predictions.csv", "table"),
        Artifact(plots / "kl_confusion.csv", "table"),
        Artifact(plots / "retrieval.csv", "table"),
    ]
    if len(shown.graded):
        draw_confusion(shown, figures / "kl_confusion.png")
        artifacts.append(Artifact(figures / "kl_confusion.png", "figure"))
    return artifacts


def predictions(split: EmbeddedSplit) -> pd.DataFrame:
    """One row per image: what is known of it, the zero-shot grade with its probabilities, both ranks of the pair.

    The ranks are the expected ones of the best correct candidate, from 1; ties make them fractions.
    """
    known = [name for name in ("img_path", "split", "patient_id", "kl_grade") if name in split.rows]
    table = split.rows[known].copy()
    table["kl_grade_predicted"] = split.predicted
    for grade in range(GRADES):
        table[f"kl_probability_{grade}"] = split.grade_probabilities[:, grade]
    table["rank_image_to_text"] = split.image_to_text.expected_rank()
    table["rank_text_to_image"] = split.text_to_image.expected_rank()
    return table


def confusion_rows(split: EmbeddedSplit) -> pd.DataFrame:
    """One row per graded image, as DVC's confusion template counts them."""
    return pd.DataFrame({"actual": split.grades, "predicted": split.predicted[split.graded]})


def recall_curve(split: EmbeddedSplit) -> pd.DataFrame:
    """Recall at `k` = 1 ... 50, a column for each direction."""
    directions = {"image_to_text": split.image_to_text, "text_to_image": split.text_to_image}
    recalls = {name: [found.recall_at(k).mean() for k in RECALL_CURVE] for name, found in directions.items()}
    return pd.DataFrame({"k": RECALL_CURVE, **recalls})


def draw_confusion(split: EmbeddedSplit, path: Path) -> None:
    """Counts per actual and predicted grade; the shade is the share within the actual grade."""
    counts = grade_confusion(split.grades, split.predicted[split.graded])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (actual, predicted), count in np.ndenumerate(counts):
        shade = "white" if shares[actual, predicted] > 0.5 else "black"
        axes.text(predicted, actual, str(count), ha="center", va="center", color=shade)
    axes.set(xticks=range(GRADES), yticks=range(GRADES), xlabel="zero-shot KL grade", ylabel="actual KL grade")
    axes.set_title(f"{split.name}: {len(split.graded)} images")
    figure.colorbar(image, label="share of the actual grade")
    figure.savefig(path, metadata={"Software": None})  # the library's version would change the file's hash


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")
