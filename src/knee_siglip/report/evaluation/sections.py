"""The measurements of one split as tables and charts. Whatever was not measured gives nothing."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from knee_siglip.report.evaluation.results import SplitResults
from knee_siglip.report.evaluation.wording import (
    BASELINES,
    CEILING,
    DIRECTIONS,
    GRADE_FIGURES,
    GRADING,
    RETRIEVAL_FIGURES,
    at,
    capital,
    cases_link,
    grade_names,
    is_yes_no,
    named,
    noun,
    percentage,
    positive_name,
    said,
    too_few_units,
)
from knee_siglip.report.html.charts import Chart
from knee_siglip.report.html.numbers import number, plural
from knee_siglip.report.html.plots import Bin, Line, curves, reliability, strip
from knee_siglip.report.html.tables import Cell, HeatTable, Table
from knee_siglip.tables.ids import describe_units
from knee_siglip.task.task import Task

CURVES = {"loss": "loss", "contrastive_accuracy": "contrastive accuracy"}
CURVE_STYLES = {"train": "train", "val": "val", "val_ema": "test"}
CURVE_NAMES = {
    "train": "training images",
    "val": "validation images",
    "val_ema": "validation images, averaged weights (EMA)",
}

PROBABILITY_STYLES = {"raw": "train", "scaled": "val"}
PROBABILITY_NAMES = {"raw": "uncalibrated", "scaled": "temperature-scaled"}


@dataclass(frozen=True)
class Charts:
    """Charts of the same series. legend: name to style."""

    charts: list[Chart]
    legend: dict[str, str]


def headline_table(split: SplitResults) -> Table | None:
    """Each headline metric with its interval, what has to be beaten, and, where it is known, what can be reached."""
    names = [name for name in split.headline if at(split.metrics, name) is not None]
    if not names:
        return None
    baselines = split.baselines()
    known = [name for name in [*BASELINES, *baselines] if any(metric in names for metric in baselines.get(name, {}))]
    known = list(dict.fromkeys(known))
    ceilings = {name: at(split.metrics, f"ceiling.{name}") for name in names}
    columns = ["", "Model", "95 % interval", *(BASELINES.get(name, name) for name in known)]
    rows: list[list[Cell]] = []
    for name in names:
        metric, value, interval = split.headline[name], at(split.metrics, name), split.interval(name)
        levels = [baselines[baseline].get(name) for baseline in known]
        row: list[Cell] = [*headline_cells(split, name), *map(metric.shown, levels)]
        row += [metric.shown(ceilings[name])] if any(ceilings.values()) else []
        marks = [level for level in levels if level is not None]
        rows.append([*row, strip(f"{metric.title}: {row[1]}, {row[2]}", value, interval, marks, metric.ends)])
    reachable = [CEILING] if any(ceilings.values()) else []
    caption = "Dot: the model. Bar: its 95 % interval. Ticks: the baselines."
    return Table(caption, [*columns, *reachable, ""], rows)


def headline_cells(split: SplitResults, name: str) -> list[Cell]:
    """A headline metric in words, its value and its interval."""
    metric, size = split.headline[name], at(split.metrics, "contrastive_batch_size")
    meaning = metric.meaning.format(size="some" if size is None else number(size))
    if (expected := at(split.metrics, f"{name}_expected")) is not None:
        meaning += f" Over all groups, not those of one shuffle, {metric.shown(expected)} is expected."
    title = Markup('<b>{}</b><br><span class="soft">{}</span>').format(metric.title, meaning)
    interval = split.interval(name)
    between = metric.between(*interval) if interval else too_few_units(split.too_few(name))
    return [title, metric.shown(at(split.metrics, name)), between]


def side_by_side_table(splits: Sequence[SplitResults]) -> Table | None:
    """The headline metrics of several splits with their intervals, none where there is one split."""
    if len(splits) < 2:
        return None
    rows: list[list[Cell]] = [["Images", *(number(at(split.metrics, "rows")) for split in splits)]]
    rows.append(["Independent units", *(describe_units(split.units) for split in splits)])
    for name, metric in splits[0].headline.items():
        if any(at(split.metrics, name) is not None for split in splits):
            rows.append([metric.title, *(_with_interval(split, name) for split in splits)])
    caption = "In brackets: 95 % interval. Recall falls with the number of images: more texts compete."
    return Table(caption, ["", *(split.name for split in splits)], rows)


def _with_interval(split: SplitResults, name: str) -> str:
    low, high = split.interval(name) or (None, None)
    return split.headline[name].with_interval(at(split.metrics, name), low, high, split.too_few(name))


def retrieval_table(split: SplitResults) -> Table | None:
    """Both directions, and beside them the stricter reading that only the very pair is right."""
    columns = {
        f"{title}{reading}": figures
        for section, reading in (("retrieval", ""), ("retrieval_strict", ", exact pair only"))
        for direction, title in DIRECTIONS.items()
        if (figures := at(split.metrics, f"{section}.{direction}"))
    }
    rows = [
        [metric.title, *(metric.shown(figures.get(name)) for figures in columns.values())]
        for name, metric in RETRIEVAL_FIGURES.items()
        if any(name in figures for figures in columns.values())
    ]
    caption = (
        "Ranked among the whole split. Equal texts and the same study count as right, except for “exact pair only”."
    )
    return Table(caption, ["", *columns], rows) if rows else None


def studies_table(split: SplitResults) -> Table | None:
    """The headline metrics of whole studies, of single images of them, and of each view."""
    groups = dict.fromkeys((row["group"], row["n"]) for row in split.table("studies"))
    names = [name for name in split.headline if any(row["metric"] == name for row in split.table("studies"))]
    found = {(row["group"], row["metric"]): row for row in split.table("studies")}
    rows: list[list[Cell]] = []
    for group, count in groups:
        cells: list[Cell] = [Markup('<b>{}</b><br><span class="soft">n = {}</span>').format(group, number(count))]
        for name in names:
            row = found.get((group, name), {})
            cells.append(split.headline[name].with_interval(row.get("value"), row.get("low"), row.get("high")))
        rows.append(cells)
    caption = (
        "A study is read by the mean of its images' embeddings; its candidates are the other studies, an image's the "
        "other images. In brackets: 95 % interval."
    )
    return Table(caption, ["", *(split.headline[name].title for name in names)], rows) if rows else None


def grade_table(split: SplitResults) -> Table | None:
    """What is known of the zero-shot grade beside the headline; of two labels nothing else."""
    rows = [
        [metric.title, metric.shown(value)]
        for name, metric in GRADE_FIGURES.items()
        if (value := split.grading(name)) is not None and not is_yes_no(split.task)
    ]
    return Table("Zero-shot grade, from the most similar prompts.", ["", "Model"], rows) if rows else None


def each_grade_table(split: SplitResults) -> Table | None:
    """How well each grade, and the positive ones together, are told from the rest."""
    columns = {"recall": "recall", "auroc": "AUROC", "auprc": "AUPRC"}
    task, two = split.task, is_yes_no(split.task)
    found: dict[str, Mapping[str, Any]] = {}
    for label, word in zip(task.labels.values, task.label_words, strict=True):
        if figures := split.grading(f"grade_{label}"):
            found[f"{capital(said(task, label))} ({word})"] = figures
    if task.positive and not two and (figures := split.grading(task.positive.name)):
        found[capital(positive_name(task))] = {**figures, "recall": figures.get("sensitivity")}
    rows = [
        [name, percentage(figures.get("recall")), _area(figures, "auroc"), _area(figures, "auprc")]
        for name, figures in found.items()
    ]
    caption = "Each label against the other." if two else "Each grade against all others."
    return Table(caption, ["", *columns.values()], rows) if rows else None


def learning_curves(live: Path) -> Charts | None:
    """Loss and accuracy of training and validation over the optimizer's steps."""
    points = {
        (curve, split): read_curve(live / "plots" / "metrics" / split / f"{curve}.tsv", curve)
        for curve in CURVES
        for split in CURVE_STYLES
    }
    charts = []
    for curve, title in CURVES.items():
        lines = [
            Line(split, style, points[curve, split]) for split, style in CURVE_STYLES.items() if points[curve, split]
        ]
        if lines:
            shares = curve != "loss"
            svg = curves(title, lines, "training step", (0, 1) if shares else None, shares=shares)
            charts.append(Chart(title.capitalize(), svg))
    drawn = {split for (_, split), found in points.items() if found}
    keys = {CURVE_NAMES[split]: style for split, style in CURVE_STYLES.items() if split in drawn}
    return Charts(charts, keys) if charts else None


def read_curve(path: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of a curve that DVCLive wrote, as far as both are numbers; none where there is no such file.

    A killed run leaves a half-written last line.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    points = pd.DataFrame(rows, columns=["step", column]).apply(pd.to_numeric, errors="coerce")
    known = points[np.isfinite(points).all(axis=1)]
    return list(zip(known["step"].astype(int).tolist(), known[column].tolist(), strict=True))


def confusion_table(graded: Sequence[tuple[int, int]], task: Task, has_cases: bool = False) -> HeatTable | None:
    """Counts of actual against predicted grade, from (actual, predicted) of each graded image.

    has_cases: each count leads to its images in the case browser.
    """
    if not graded:
        return None
    names = grade_names(task)
    counts = [[0] * len(names) for _ in names]
    for actual, predicted in graded:
        counts[actual][predicted] += 1
    errors = [abs(actual - predicted) for actual, predicted in graded]
    far = f", {sum(error > 1 for error in errors):,} of them by more than one grade" * (not is_yes_no(task))
    wrong = f"{sum(error > 0 for error in errors):,} of {plural(len(graded), 'image')}"
    caption = f"{wrong} got a wrong {noun(task)}{far}. Shading: share of the actual {noun(task)}."
    values = task.labels.values if has_cases else ()
    links = [[cases_link(actual=actual, predicted=predicted) for predicted in values] for actual in values]
    return HeatTable(caption, "actual ↓, predicted →", names, counts, links)


def calibration_charts(split: SplitResults) -> Charts | None:
    """Reliability before and after temperature scaling, and what abstaining would gain."""
    bins: dict[str, list[Bin]] = {}
    for row in split.table("calibration"):
        style = PROBABILITY_STYLES[row["probabilities"]]
        bins.setdefault(style, []).append(Bin(row["confidence"], row["accuracy"], row["n"]))
    charts = []
    if bins:
        svg = reliability("Reliability diagram: accuracy by confidence", bins)
        charts.append(Chart("Calibration (reliability diagram)", svg, _calibration_note(split)))
    if points := [(row["coverage"], row["risk"]) for row in split.table("risk_coverage")]:
        shares = {tick / 4: f"{25 * tick} %" for tick in range(5)}
        svg = curves(
            "Risk-coverage curve: error rate by coverage",
            [Line("", "train", points)],
            "coverage (images answered)",
            None,
            shares,
            True,
        )
        note = "Error rate if only the images with the highest confidence are answered."
        charts.append(Chart("Selective prediction (risk-coverage curve)", svg, note))
    keys = {PROBABILITY_NAMES[kind]: style for kind, style in PROBABILITY_STYLES.items() if style in bins}
    return Charts(charts, keys) if charts else None


def abstaining_table(split: SplitResults) -> Table | None:
    """What is gained where the model may abstain, at thresholds that validation images chose."""
    error = GRADING["accuracy"]
    rows = [
        [
            percentage(row["answered_on_val"]),
            percentage(row["threshold"]),
            f"{percentage(row['coverage'])} ({plural(row['n'], 'image')})",
            percentage(row["risk"]),
            error.between(row["low"], row["high"]),
        ]
        for row in split.table("abstention")
    ]
    columns = ["Answered on validation", "Confidence threshold", "Answered here", "Error rate", "95 % interval"]
    caption = "Error rate if only images above a confidence threshold are answered; validation images chose it."
    return Table(caption, columns, rows) if rows else None


def operating_table(split: SplitResults) -> Table | None:
    """Sensitivity, specificity and positive predictive value at the thresholds that validation images chose."""
    found: dict[str, Mapping[str, Any]] = {}
    if split.task.positive and (figures := split.grading(split.task.positive.name)):
        found[positive_name(split.task)] = figures
    found |= at(split.metrics, "zero_shot_findings") or {}
    rows: list[list[Cell]] = []
    for name, figures in found.items():
        if figures.get("threshold") is not None:
            shares = [GRADING["accuracy"].of_figures(figures, rate) for rate in ("sensitivity", "specificity", "ppv")]
            rows.append([named(name), number(figures["positives"]), *shares, number(figures["threshold"])])
    columns = ["", "Positives", "Sensitivity", "Specificity", "Positive predictive value", "Threshold"]
    caption = "In brackets: 95 % interval. The predictive value holds for the prevalence among these images."
    return Table(caption, columns, rows) if rows else None


def _area(figures: Mapping[str, float], name: str) -> str:
    return GRADING["macro_auroc"].shown(figures.get(name))


def _calibration_note(split: SplitResults) -> str:
    error, scaled = at(split.metrics, "calibration.ece"), at(split.metrics, "calibration.ece_scaled")
    parts = ["On the dashed line, confidence equals accuracy."]
    if error is not None:
        parts.append(
            f"Expected calibration error {percentage(error)}"
            + (f", {percentage(scaled)} after scaling." if scaled else ".")
        )
    if (temperature := at(split.metrics, "calibration.temperature")) is not None:
        parts.append(f"The temperature {number(temperature)} was fitted on validation images only.")
    return " ".join(parts)
