"""The verdict in three plain sentences: what the model can do, what it beats, where it is weak."""

import math
from dataclasses import dataclass
from urllib.parse import parse_qsl

from knee_siglip.metrics.units import FEWEST_UNITS
from knee_siglip.report.evaluation.results import Row, SplitResults
from knee_siglip.report.evaluation.wording import (
    BASELINES,
    CHANCE,
    at,
    group_name,
    is_yes_no,
    labelled,
    named,
    noun,
    of_hundred,
    percentage,
    said,
)
from knee_siglip.report.html.numbers import number, plural, readable
from knee_siglip.tables.ids import describe_units
from knee_siglip.task.task import Task

INVERSION = "inversion"

FALL = 0.05
"""Drop under a disturbance that deserves a sentence."""

CALIBRATION_ERROR = 0.05
"""Expected calibration error that deserves a sentence."""

SUBSTANTIAL = 0.6
"""Kappa above which agreement is called substantial (Landis and Koch 1977)."""

TEMPLATED = 0.5
"""Share of texts that train holds as well that deserves a sentence."""

LEVEL = 0.05
"""Of p-values adjusted for all tests of a table."""


@dataclass(frozen=True)
class Verdict:
    """tone: class of the style sheet; headline: the first sentence, advice: the others; word: the verdict in a word."""

    tone: str
    headline: str
    advice: str
    word: str


def verdict(split: SplitResults) -> Verdict:
    """Judge one split. If the model does not beat the baselines, the first sentence says so.

    There is no judgement where no headline metric has enough independent units for an interval.
    """
    if any(split.too_few(name) is not None for name in split.headline) and not any(map(split.interval, split.headline)):
        why = f"it holds {describe_units(split.units)}, and an interval needs {FEWEST_UNITS} of each class it compares"
        advice = f"{_ability(split)} Chance alone may explain these figures."
        headline = f"The {split.name} split is too small to judge the model: {why}."
        return Verdict("warning", headline, advice, "Not judged")
    beaten_by = not_beaten(split)
    if has_collapsed(split):
        images = f"all {labelled(split.task)} images of the {split.name} split"
        headline = f"This model has collapsed: {images} get one {noun(split.task)}."
        return Verdict("error", headline, _before_training(split), "Unusable")
    judged = at(split.metrics, "verdict.beats_baselines")
    if judged == 0 or (judged is None and beaten_by):
        return Verdict("error", _defeat(split, beaten_by), f"{_ability(split)} {_weakest(split)}", "Unusable")
    flagged = any(row.get("flagged") for name in ("subgroups", "slices") for row in split.table(name))
    kappa = split.interval(f"{split.task.labels.metrics}.quadratic_weighted_kappa")
    moderate = kappa is not None and kappa[0] < SUBSTANTIAL
    tone = "warning" if flagged or beaten_by or moderate else "good"
    doubt = _moderate(split, kappa) if moderate and kappa else ""
    parts = [_victory(split, beaten_by), doubt, templated(split), _weakest(split)]
    advice = " ".join(part for part in parts if part)
    return Verdict(tone, _ability(split), advice, "Weak" if tone == "warning" else "Usable")


def has_collapsed(split: SplitResults) -> bool:
    """Whether all graded images get one grade though they have several."""
    actual = [label for label in split.task.labels.values if split.grading(f"grade_{label}")]
    return split.grading("grades_predicted") == 1 and len(actual) > 1


def templated(split: SplitResults) -> str:
    """A sentence where most texts were seen in training, which retrieval then only recognises."""
    share = at(split.metrics, "wordings.in_train")
    if share is None or share < TEMPLATED:
        return ""
    name = "wordings.new.image_to_text.recall_at_1"
    new, count = at(split.metrics, name), plural(at(split.metrics, "wordings.new.n") or 0, "image")
    seen = f"{percentage(share)} of the texts also stand in train, word for word: retrieval shows them recognised"
    other = f" (of {count} with another text a right one comes first for {percentage(new)})"
    if new is None or split.too_few(name) is not None:
        other = f" ({count} with another text are too few to tell)"
    return f"{seen}, not that new wording is understood{other}."


def _before_training(split: SplitResults) -> str:
    """How the untrained model did, beside this one."""
    name = f"{split.task.labels.metrics}.quadratic_weighted_kappa"
    before, now = at(split.metrics, f"baseline.untrained.{name}"), at(split.metrics, name)
    if before is None or now is None:
        return "Whether it did better before this training is not known: that was not measured."
    word = "better" if before > now else "no better"
    return f"Before this training it did {word}: {split.headline[name].phrase} {before:.2f}, now {now:.2f}."


def _moderate(split: SplitResults, kappa: tuple[float, float]) -> str:
    agreement = f"Its agreement on the {noun(split.task)} may be less than substantial"
    return f"{agreement}: the interval of kappa begins at {kappa[0]:.2f}."


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
    unseen = "" if split.name == "train" else "unseen "
    tasks = {
        "retrieval.image_to_text.recall_at_1": f"ranks a right text first for {{}} {unseen}images",
        f"{split.task.labels.metrics}.accuracy": f"{_answers(split)} for {{}}",
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


def _answers(split: SplitResults) -> str:
    task = split.task
    if is_yes_no(task):
        return f"is right about {task.label_title} ({' or '.join(task.labels.values)})"
    return f"predicts the right {task.label_title}"


def _weakest(split: SplitResults) -> str:
    """The weak spots, or what was checked without finding one; and what could not be checked."""
    checks = {
        "slices of the data": (bool(split.table("slices")), worst_slice(split)),
        "subgroups": (_any_known(split, "subgroups", "p_holm"), _weakest_group(split)),
        "disturbed images": (_any_known(split, "robustness", "p_holm"), _weakest_condition(split)),
        "prompt wording": (_any_known(split, "prompts", "kappa_high"), _weakest_prompt(split)),
        "calibration": (at(split.metrics, "calibration.ece") is not None, _miscalibration(split)),
    }
    spots = [spot for checked, spot in checks.values() if checked and spot]
    fine = [name for name, (checked, spot) in checks.items() if checked and not spot]
    unchecked = [name for name, (checked, _) in checks.items() if not checked]
    said = [f"Weak spots: {'; '.join(spots)}."] if spots else []
    said += [f"None detected in: {', '.join(fine)}{_detectable(split)}."] if fine else []
    said += [f"Unchecked: {', '.join(unchecked)}."] if unchecked else []
    return " ".join(said)


def _any_known(split: SplitResults, table: str, column: str) -> bool:
    return any(row.get(column) is not None for row in split.table(table))


def _detectable(split: SplitResults) -> str:
    """From how many mistakes on a slice would have been found, where none was."""
    slices = split.table("slices")
    if not slices or worst_slice(split):
        return ""
    smallest = min(slices, key=lambda row: row["n"])
    found = f"from {percentage(smallest['detectable'])} mistakes on"
    return f" (a slice of {plural(smallest['n'], 'image')} would have been found {found})"


def slice_name(task: Task, row: Row) -> str:
    """`effusion, grade 2`, of a row of the table of slices."""
    parts = []
    for name, value in parse_qsl(row["filters"]):
        if name == "actual":
            parts.append(said(task, value))
        else:
            parts.append(readable(value) if name == "finding" else group_name(name.removeprefix("in."), value))
    return ", ".join(parts)


def worst_slice(split: SplitResults) -> str:
    """The slice that most surely has more mistakes than the rest, in words."""
    row = next((row for row in split.table("slices") if row.get("worst") == 1), None)
    if row is None:
        return ""
    return (
        f"{slice_name(split.task, row)} ({plural(row['n'], 'image')}): {percentage(row['risk'])} mistakes, "
        f"{percentage(row['risk_outside'])} elsewhere"
    )


def _weakest_prompt(split: SplitResults) -> str:
    """A prompt that alone, for its grade, surely takes kappa with it."""
    name = "quadratic_weighted_kappa"
    rows = [row for row in split.table("prompts") if row.get("kappa_high") is not None]
    row = min(rows, key=lambda row: float(row[f"{name}_difference"]), default=None)
    if row is None or row[f"{name}_difference"] > -FALL or row["kappa_high"] >= 0:
        return ""
    before = row[name] - row[f"{name}_difference"]
    alone = f"with “{row['prompt']}” alone for {said(split.task, row['grade'])}"
    return f"{alone}, kappa falls from {before:.2f} to {row[name]:.2f}"


def _weakest_group(split: SplitResults) -> str:
    def gap(row: Row) -> float:
        overall = at(split.metrics, row["metric"])
        return math.inf if overall is None else float(row["value"]) - float(overall)

    flagged = [row for row in split.table("subgroups") if row.get("flagged") and row.get("value") is not None]
    known = [row for row in flagged if row["metric"] in split.headline and math.isfinite(gap(row))]
    if not known:
        return ""
    return group_gap(split, min(known, key=gap))


def group_gap(split: SplitResults, row: Row) -> str:
    """What a metric is in a subgroup, and overall, in words."""
    metric, overall = split.headline[row["metric"]], at(split.metrics, row["metric"])
    group = f"{group_name(row['column'], row['group'])} ({plural(row['n'], 'image')})"
    return f"{group}: {metric.phrase} {metric.shown(row['value'])}, overall {metric.shown(overall)}"


def worst_condition(split: SplitResults) -> Row | None:
    """The disturbance with the largest drop of a headline metric; inversion excluded, as any reader notices it."""
    known = [
        row
        for row in split.table("robustness")
        if row.get("p_holm") is not None and row["metric"] in split.headline and row["condition"] != INVERSION
    ]
    return min(known, key=lambda row: float(row["difference"]), default=None)


def _weakest_condition(split: SplitResults) -> str:
    row = worst_condition(split)
    if row is None or row["difference"] > -FALL or not (row.get("p_holm") or 0) < LEVEL:
        return ""
    metric, level = split.headline[row["metric"]], f", {number(row['level'])}" if row.get("level") else ""
    return (
        f"with “{named(str(row['condition']))}{level}” {metric.phrase} falls from "
        f"{metric.shown(row['value'] - row['difference'])} to {metric.shown(row['value'])}"
    )


def _miscalibration(split: SplitResults) -> str:
    """By the temperature-scaled probabilities, which inference gives, where there are any."""
    raw, scaled = at(split.metrics, "calibration.ece"), at(split.metrics, "calibration.ece_scaled")
    error = raw if scaled is None else scaled
    if error is None or error < CALIBRATION_ERROR:
        return ""
    return f"confidence in the {noun(split.task)} is off by {percentage(error)} on average (expected calibration error)"
