"""What an evaluation leaves on disk: metrics, tables, plots, pictures and facts, for the report and the trackers.

metrics.json: nested, first the split. facts.json: what made the model. predictions.parquet, embeddings.parquet: a row
for each image. studies.parquet: a row for each study, where any has several images. tables/*.csv: a file for each table
that any split has, its first column is the split. plots/*.csv: for `dvc plots`. figures/: the confusion matrix and the
maps. examples.json and pictures/: single images worth a look.
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from knee_siglip.core.cells import defanged
from knee_siglip.core.files import atomic_text
from knee_siglip.core.metrics_file import write_json, write_metrics
from knee_siglip.evaluation.embedded import EmbeddedData
from knee_siglip.evaluation.examples import gallery, worst_mistakes
from knee_siglip.evaluation.measurement import MeasuredSplit
from knee_siglip.evaluation.plots import PLOTS, draw_confusion, plot_rows
from knee_siglip.evaluation.predictions import embeddings_table, write_predictions
from knee_siglip.task.task import Labels

FOLDERS = ("tables", "plots", "figures", "pictures")


@dataclass(frozen=True)
class Artifact:
    """A written file; `kind` is one of `tracking.privacy.KINDS`, `folder` where trackers put it."""

    path: Path
    kind: str
    folder: str


def write_results(
    data: EmbeddedData, results: Sequence[MeasuredSplit], facts: Mapping[str, Any], folder: Path
) -> list[Artifact]:
    """Write everything; plots and examples are of the test split, or of the first one where test was not evaluated.

    Returns:
        the files that trackers get.
    """
    shown = next((result for result in results if result.name == "test"), results[0])
    for name in FOLDERS:  # an older evaluation's table would pass for this one's
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    metrics = {f"{result.name}.{name}": value for result in results for name, value in result.metrics.items()}
    write_metrics(folder / "metrics.json", metrics)
    write_json(folder / "facts.json", facts)
    write_predictions(pd.concat([result.predictions for result in results]), folder / "predictions.parquet")
    write_predictions(pd.concat([result.studies for result in results]), folder / "studies.parquet")
    write_predictions(embeddings_table(data), folder / "embeddings.parquet")
    plots = plot_rows(shown)
    reports = [_write_table(plots[name], columns, folder / f"plots/{name}.csv") for name, columns in PLOTS.items()]
    reports += [*_write_tables(results, folder / "tables"), *_write_confusion(shown, folder / "figures")]
    reports.append(_write_cases(pd.concat([result.predictions for result in results]), folder / "tables/cases.csv"))
    patients = _write_maps(shown, folder / "figures")
    _write_examples(data, shown, folder)
    patients += [folder / name for name in ("predictions.parquet", "studies.parquet", "embeddings.parquet")]
    return [
        Artifact(folder / "metrics.json", "report", "evaluation"),
        *(Artifact(path, "report", path.parent.name) for path in reports),
        *(Artifact(path, "patients", path.parent.name) for path in patients),
    ]


def _write_tables(results: Sequence[MeasuredSplit], folder: Path) -> list[Path]:
    names = dict.fromkeys(name for result in results for name, rows in result.tables.items() if rows)
    paths = []
    for name in names:
        rows = [{"split": result.name, **row} for result in results for row in result.tables[name]]
        columns = dict.fromkeys(column for row in rows for column in row)
        paths.append(_write_table(rows, list(columns), folder / f"{name}.csv"))
    return paths


def _write_cases(predictions: pd.DataFrame, path: Path) -> Path:
    """Write what the model made of each image, without what tells whose it is, or which row of the data."""
    labels = Labels.of_predictions(predictions.columns)
    graded = [labels.column, labels.predicted, *labels.probabilities] if labels else []
    ranks = [f"{search}_rank" for search in ("image_to_text", "text_to_image")]
    kept = [name for name in ("split", *graded, *ranks) if name in predictions]
    with atomic_text(path) as file:
        predictions[kept].sort_values(kept).to_csv(file, index=False, lineterminator="\n")
    return path


def _write_confusion(shown: MeasuredSplit, folder: Path) -> list[Path]:
    """Draw the confusion matrix, where there are grades."""
    if not len(shown.split.graded):
        return []
    draw_confusion(shown.split, folder / "confusion.png")
    return [folder / "confusion.png"]


def _write_maps(shown: MeasuredSplit, folder: Path) -> list[Path]:
    """Write the maps of the grounding, which show patients."""
    paths = []
    for number, (_, content) in enumerate(shown.overlays, start=1):
        paths.append(folder / f"grounding_{number}.jpg")
        paths[-1].write_bytes(content)
    return paths


def _write_examples(data: EmbeddedData, shown: MeasuredSplit, folder: Path) -> None:
    """Write examples.json, whose `picture` is a file's name in the report's folder, and the pictures it lacks yet."""
    examples = {"gallery": gallery(shown.split, data.params.gallery), "mistakes": worst_mistakes(shown.split)}
    for kind, found in examples.items():
        for number, example in enumerate(found, start=1):
            example["picture"] = f"pictures/{kind}_{number}.png"
            pixels = data.pixels[shown.split.numbers[[example["row"]]]][0]
            Image.fromarray(pixels).save(folder / example["picture"])
    maps = [
        {"title": title, "picture": f"figures/grounding_{number}.jpg"}
        for number, (title, _) in enumerate(shown.overlays, start=1)
    ]
    write_json(folder / "examples.json", {**examples, "maps": maps, "case_maps": shown.case_maps})


def _write_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> Path:
    with atomic_text(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: defanged(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
    return path
