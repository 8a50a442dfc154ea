"""The verdict in three plain sentences: what the model can do, what it beats, where it is weak."""

import math
from dataclasses import dataclass

from knee_siglip.metrics.units import FEWEST_UNITS
from knee_siglip.report.evaluation.results import Row, SplitResults
from knee_siglip.report.evaluation.wording import (
    BASELINES,
    CHANCE,
    at,
    group_name,
    named,
    of_hundred,
    percentage,
)
from knee_siglip.report.html.numbers import number, plural
from knee_siglip.tables.ids import describe_units

INVERSION = "inversion"

FALL = 0.05
"""Drop under a disturbance that deserves a sentence."""

CALIBRATION_ERROR = 0.05
"""Expected calibration error that deserves a sentence."""


@dataclass(frozen=True)
class Verdict:
    """tone: class of the style sheet; headline: the first sentence, advice: the others."""

    tone: str
    headline: str
    advice: str


def verdict(split: SplitResults) -> Verdict:
    """Judge one split. If the model does not beat the baselines, the first sentence says so.

    There is no judgement where no headline metric has enough independent units for an interval.
    """
    if any(split.too_few(name) is not None for name in split.headline) and not any(map(split.interval, split.headline)):
        why = f"it holds {describe_units(split.units)}, and an interval needs {FEWEST_UNITS} of each class it compares"
        advice = f"{_ability(split)} Chance alone may explain these figures."
        return Verdict("warning", f"The {split.name} split is too small to judge the model: {why}.", advice)
    beaten_by = not_beaten(split)
    judged = at(split.metrics, "verdict.beats_baselines")
    if judged == 0 or (judged is None and beaten_by):
        return Verdict("error", _defeat(split, beaten_by), f"{_ability(split)} {_weakest(split)}")
    flagged = any(row.get("flagged") for row in split.table("subgroups"))
    tone = "warning" if flagged or beaten_by else "good"
    return Verdict(tone, _ability(split), f"{_victory(split, beaten_by)} {_weakest(split)}")


def not_beaten(split: SplitResults) -> dict[str, list[str]]:
    """For each baseline the headline metrics whose interval does not lie above it."""
    lost: dict[str, list[str]] = {}
    for baseline, figures in split.baselines().items():
        for metric in split.headline:
            value, interval = at(split.metrics, metric), split.interval(metric)
            if value is not None and metric in figures and split.too_few(metric) is None:
                surely = value if interval is None else interval[0]
                if surely <= figures[metric]:
                    lost.setdefault(baseline, []).append(metric)
    return lost


def _defeat(split: SplitResults, beaten_by: dict[str, list[str]]) -> str:
    if not beaten_by:
        return "This model does not beat every baseline."
    measured = [metric for metric in split.headline if at(split.metrics, metric) is not None]
    if len(beaten_by.get(CHANCE, ())) > len(measured) / 2:
        return "This model is no better than chance."
    return f"This model is not clearly better than {_worst_loss(split, beaten_by)}."


def _victory(split: SplitResults, beaten_by: dict[str, list[str]]) -> str:
    if beaten_by:
        return f"Overall it beats every baseline, but it is not clearly better than {_worst_loss(split, beaten_by)}."
    others = [name for name in split.baselines() if name != CHANCE]
    more = f" and {plural(len(others), 'other baseline')}" if others else ""
    return f"It beats chance{more} in every headline metric measured for them."


def _worst_loss(split: SplitResults, beaten_by: dict[str, list[str]]) -> str:
    """Chance first: a model that does not beat it needs no further comparison."""
    baseline = CHANCE if CHANCE in beaten_by else max(beaten_by, key=lambda name: len(beaten_by[name]))
    lost = [split.headline[metric].phrase for metric in beaten_by[baseline]]
    more = f" and {plural(len(lost) - 1, 'other metric')}" if len(lost) > 1 else ""
    return f"{_baseline(baseline)} in {lost[0]}{more}"


def _baseline(name: str) -> str:
    return f"the baseline “{BASELINES.get(name, name)}”" if name != CHANCE else "chance"


def _ability(split: SplitResults) -> str:
    tasks = {
        "retrieval.image_to_text.recall_at_1": f"ranks a right text first for {{}} {_kind(split)}images",
        f"{split.task.labels.metrics}.accuracy": f"predicts the right {split.task.label_title} for {{}}",
    }
    said = []
    for metric, task in tasks.items():
        if (value := at(split.metrics, metric)) is not None:
            interval = split.interval(metric)
            sure = f" (95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ""
            said.append(task.format(of_hundred(value)) + sure)
    if not said:
        return "Neither retrieval nor grading was measured."
    return f"The model {' and '.join(said)}."


def _kind(split: SplitResults) -> str:
    return "" if split.name == "train" else "unseen "


def _weakest(split: SplitResults) -> str:
    """The two most important weak spots, or what was checked without finding one."""
    looked = [
        name
        for name, known in (
            ("subgroups", split.table("subgroups")),
            ("disturbed images", split.table("robustness")),
            ("calibration", at(split.metrics, "calibration.ece") is not None),
        )
        if known
    ]
    if not looked:
        return "Weak spots were not examined."
    spots = [spot for spot in (_weakest_group(split), _weakest_condition(split), _miscalibration(split)) if spot]
    if not spots:
        return f"No weak spot found (checked: {', '.join(looked)})."
    return f"Weak spots: {'; '.join(spots[:2])}."


def _weakest_group(split: SplitResults) -> str:
    def gap(row: Row) -> float:
        overall = at(split.metrics, row["metric"])
        return math.inf if overall is None else float(row["value"]) - float(overall)

    flagged = [row for row in split.table("subgroups") if row.get("flagged") and row.get("value") is not None]
    known = [row for row in flagged if row["metric"] in split.headline and math.isfinite(gap(row))]
    if not known:
        return ""
    row = min(known, key=gap)
    metric, overall = split.headline[row["metric"]], at(split.metrics, row["metric"])
    return (
        f"{group_name(row['column'], row['group'])} ({plural(row['n'], 'image')}): {metric.phrase} "
        f"{metric.shown(row['value'])}, overall {metric.shown(overall)}"
    )


def worst_condition(split: SplitResults) -> Row | None:
    """The disturbance with the largest drop of a headline metric; inversion excluded, as any reader notices it."""
    known = [
        row
        for row in split.table("robustness")
        if row.get("difference") is not None and row["metric"] in split.headline and row["condition"] != INVERSION
    ]
    return min(known, key=lambda row: float(row["difference"]), default=None)


def _weakest_condition(split: SplitResults) -> str:
    row = worst_condition(split)
    if row is None or row["difference"] > -FALL:
        return ""
    metric, level = split.headline[row["metric"]], f", {number(row['level'])}" if row.get("level") else ""
    return (
        f"with “{named(str(row['condition']))}{level}” {metric.phrase} falls from "
        f"{metric.shown(row['value'] - row['difference'])} to {metric.shown(row['value'])}"
    )


def _miscalibration(split: SplitResults) -> str:
    error = at(split.metrics, "calibration.ece")
    if error is None or error < CALIBRATION_ERROR:
        return ""
    return f"confidence in the grade is off by {percentage(error)} on average (expected calibration error)"
