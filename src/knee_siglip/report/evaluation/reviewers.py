"""What reviewers ask for (STARD-AI, CLAIM 2024, TRIPOD+AI): the flow of rows, what could be detected, calibration."""

from scipy.special import ndtri

from knee_siglip.report.evaluation.results import EvaluationResults, SplitResults
from knee_siglip.report.evaluation.wording import GRADING, at, capital, labelled, noun, percentage, said, too_few_units
from knee_siglip.report.html.charts import Chart
from knee_siglip.report.html.numbers import number, plural
from knee_siglip.report.html.plots import Line, curves
from knee_siglip.report.html.tables import Table

KAPPA = GRADING["quadratic_weighted_kappa"]
DETECTED = float((ndtri(0.025) + ndtri(0.2)) / (2 * ndtri(0.025)))
"""Of an interval's width: what a two-sided test at 5 % finds with a power of 80 %."""


def flow_table(results: EvaluationResults) -> Table | None:
    """From the rows that were given to those that were measured."""
    given, dropped = at(results.validation, "rows"), at(results.validation, "dropped")
    rows = [] if given is None else [["given", number(given + (dropped or 0)), ""]]
    rows += [["dropped by validation", number(dropped), ""]] if dropped is not None else []
    for name, counts in (at(results.facts, "counts") or {}).items():
        graded = counts.get("graded_rows", 0)
        rows.append([f"{name} split", number(counts["rows"]), f"{number(graded)} / {number(counts['rows'] - graded)}"])
    for split in results.splits:
        if (measured := at(split.metrics, "rows")) is not None:
            rows.append([f"measured on the {split.name} split", number(measured), ""])
    given_or_not = f"{labelled(results.shown.task)} / un{labelled(results.shown.task)}"
    return Table("Flow of rows.", ["", "Images", given_or_not], rows) if results.facts.get("counts") else None


def detectable_table(split: SplitResults) -> Table | None:
    """From which difference to a fixed value on a test of this size would find it."""
    rows = []
    for name, metric in split.headline.items():
        if (interval := split.interval(name)) is not None:
            gap = DETECTED * (interval[1] - interval[0])
            shown = f"{100 * gap:.1f} points" if metric.kind == "share" else f"{gap:.3f}"
            rows.append([metric.title, shown])
    caption = (
        "Differences to a fixed value that this many patients would show in four of five cases, by the width of the "
        "interval. Two models on the same images differ detectably from less on: knee-siglip compare."
    )
    return Table(caption, ["", "Detectable difference"], rows) if rows else None


def readers_sentence(split: SplitResults) -> str:
    """Agreement of two readers, and of the model with the second; empty without a second."""
    if at(split.metrics, "readers.n") is None:
        return ""
    told = []
    for name, words in (("between", "two readers agree"), ("model_to_second", "model and second reader agree")):
        key = f"readers.{name}.quadratic_weighted_kappa"
        low, high = split.interval(key) or (None, None)
        shown = KAPPA.with_interval(at(split.metrics, key), low, high, split.too_few(key))
        told.append(f"{words} at kappa {shown}")
    return f"On {plural(at(split.metrics, 'readers.n'), 'image')} {', '.join(told)}."


def slope_sentence(split: SplitResults) -> str:
    """Slope and intercept of the calibration; empty where they were not measured."""
    asked = split.task.positive
    name = f"calibration.{asked.name}" if asked else ""
    slope, intercept = at(split.metrics, f"{name}.slope"), at(split.metrics, f"{name}.intercept")
    if not asked or slope is None or intercept is None:
        return ""
    parts = []
    for word, value in (("slope", slope), ("intercept", intercept)):
        interval = split.interval(f"{name}.{word}")
        between = (
            f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else too_few_units(split.too_few(f"{name}.{word}"))
        )
        parts.append(f"{word} {value:.2f} ({between})")
    return (
        f"Calibration of {asked.title} (temperature-scaled): {', '.join(parts)}. Perfect are a slope of 1 and an "
        "intercept of 0; with a slope below 1 the probabilities are too extreme."
    )


def grade_calibration(split: SplitResults) -> Table | None:
    """Mean probability and frequency of each grade."""
    rows = [
        [capital(said(split.task, row["grade"])), percentage(row["probability"]), percentage(row["share"])]
        for row in split.table("calibration_grades")
    ]
    caption = f"Mean probability (temperature-scaled) and frequency of each {noun(split.task)}."
    return Table(caption, ["", "Mean probability", "Frequency"], rows) if rows else None


def decision_chart(split: SplitResults) -> Chart | None:
    """Net benefit of acting by the model, of acting on everybody, and of acting on nobody."""
    rows, asked = split.table("decision_curve"), split.task.positive
    if not rows or asked is None:
        return None
    model, everybody = ([(float(row["threshold"]), float(row[name])) for row in rows] for name in ("model", "all"))
    shown = [point for point in everybody if point[1] >= 0]
    nobody = [(model[0][0], 0.0), (model[-1][0], 0.0)]
    lines = [Line("model", "train", model), Line("everybody", "val", shown), Line("nobody", "test", nobody)]
    ticks = {tick / 4: f"{25 * tick} %" for tick in range(1, 4)}
    svg = curves(f"Decision curve for {asked.title}: net benefit", lines, "threshold probability", None, ticks)
    return Chart(f"Decision curve for {asked.title}", svg, "Net benefit per image, over the probability to act from.")
