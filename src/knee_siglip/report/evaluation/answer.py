"""The answer card: on one screen what the verdict stands on, and where the mistakes are."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from knee_siglip.report.evaluation.results import EvaluationResults, SplitResults
from knee_siglip.report.evaluation.sections import headline_cells
from knee_siglip.report.evaluation.verdict import slice_name
from knee_siglip.report.evaluation.wording import (
    GRADING,
    at,
    capital,
    grade_names,
    is_yes_no,
    noun,
    percentage,
    positive_name,
    said,
)
from knee_siglip.report.html.numbers import plural
from knee_siglip.report.html.tables import Cell, Table
from knee_siglip.tables.ids import describe_units

SHARE = GRADING["accuracy"]


def answer_card(results: EvaluationResults) -> dict[str, Any]:
    """Of the split that is shown, as the page's template takes it.

    basis: what the figures rest on. yes_no: each grade, and the positive ones together, as yes or no. slices: (what was
    found, link to its cases, empty without a case browser), the worst first. searched: what was looked through.
    """
    split = results.shown
    return {
        "basis": _basis(results),
        "figures": _figures(split),
        "yes_no": _yes_no(split),
        "slices": _slices(results),
        "searched": _searched(split),
    }


def _basis(results: EvaluationResults) -> str:
    split = results.shown
    rows = at(split.metrics, "rows")
    parts = [] if rows is None else [plural(rows, "image")]
    parts += [describe_units(split.units)] if split.units else []
    if (seed := at(results.facts, "params.seed")) is not None:
        parts.append(f"one training (seed {seed}): what another seed would change is not in the intervals")
    return ", ".join(parts)


def _figures(split: SplitResults) -> Table | None:
    deciding = (
        f"{split.task.labels.metrics}.quadratic_weighted_kappa",
        "retrieval.image_to_text.recall_at_1",
        "retrieval.text_to_image.recall_at_1",
    )
    rows = [headline_cells(split, name) for name in deciding if at(split.metrics, name) is not None]
    return Table("What decides.", ["", "Model", "95 % interval"], rows) if rows else None


def _yes_no(split: SplitResults) -> Table | None:
    """Sensitivity, specificity and positive predictive value; of two labels those of the second."""
    task, found = split.task, {}
    for label, name in list(zip(task.labels.values, grade_names(task), strict=True))[is_yes_no(task) :]:
        if figures := split.grading(f"grade_{label}"):
            renamed = {metric.replace("recall", "sensitivity"): value for metric, value in figures.items()}
            found[capital(said(task, name))] = renamed
    caption = f"In brackets: 95 % interval. A {noun(task)} is that of the most similar prompts."
    if task.positive and (figures := split.grading(task.positive.name)):
        title = capital(task.positive.title)
        if figures.get("sensitivity") is None:
            caption += f" {title}: on validation images, no threshold was better than a guess."
        else:
            found[capital(positive_name(task)) + ", at a threshold" * is_yes_no(task)] = figures
            caption += f" {title}: at the threshold chosen on validation images."
    columns = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "Positive predictive value"}
    rows: list[list[Cell]] = [
        [name, *(_share(figures, metric) for metric in columns)] for name, figures in found.items()
    ]
    return Table(caption, ["", *columns.values()], rows) if rows else None


def _share(figures: Mapping[str, Any], name: str) -> Cell:
    """On two lines, so that three of them fit beside each other."""
    value, _, between = SHARE.of_figures(figures, name).partition(" (")
    return Markup("{}<br>({}").format(value, between) if between else value


def _slices(results: EvaluationResults) -> list[tuple[str, str]]:
    split = results.shown
    rows = [row for row in split.table("slices") if row.get("worst") is not None]
    return [
        (
            f"{slice_name(split.task, row)}: {row['mistakes']} of {plural(row['n'], 'image')} wrong, "
            f"{SHARE.with_interval(row['risk'], row['low'], row['high'])}; elsewhere "
            f"{percentage(row['risk_outside'])}, adjusted p "
            f"{'below 0.001' if row['p_holm'] < 0.001 else round(row['p_holm'], 3)}",
            f"cases.html#{row['filters']}" if results.has_cases else "",
        )
        for row in sorted(rows, key=lambda row: int(row["worst"]))
    ]


def _searched(split: SplitResults) -> str:
    rows = split.table("slices")
    if not rows:
        return "Slices of the data were not searched for mistakes: there are too few images or patients."
    smallest = min(rows, key=lambda row: int(row["n"]))
    found = "" if any(row.get("flagged") for row in rows) else " None was found to have more."
    return (
        f"{plural(len(rows), 'slice')} (by {noun(split.task)}, finding and column, and by two of these) were tested "
        f"for more mistakes than elsewhere, with Holm's correction.{found} With {plural(smallest['n'], 'image')}, a "
        f"share of {percentage(smallest['detectable'])} would have been found in four of five cases."
    )
