"""Where the model may fail: findings, grounding, subgroups, disturbed images, other prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from knee_siglip.report.evaluation.results import Row, SplitResults
from knee_siglip.report.evaluation.verdict import group_gap, worst_condition
from knee_siglip.report.evaluation.wording import (
    GRADING,
    Metric,
    at,
    capital,
    group_name,
    labelled,
    named,
    noun,
    percentage,
    too_few_units,
)
from knee_siglip.report.html.charts import Chart
from knee_siglip.report.html.numbers import number, plural
from knee_siglip.report.html.plots import Estimate, Line, curves, forest, strip
from knee_siglip.report.html.tables import Cell, Table

CENTRE_PRIOR = "centre_prior"
GROUNDING_FIGURES = {
    "pointing_game": Metric("Pointing game (maximum inside the box)"),
    "cnr": Metric("Contrast-to-noise ratio (CNR)", kind="number"),
    "cnr_signed": Metric("Signed CNR (negative if it avoids the box)", kind="number"),
    "miou": Metric("Mean IoU with the box", kind="score"),
}
AREA = GRADING["macro_auroc"]
KAPPA = GRADING["quadratic_weighted_kappa"]
PROBE_METRICS = ("accuracy", "quadratic_weighted_kappa")


def findings_table(split: SplitResults) -> Table | None:
    """Every finding that was looked for with a pair of prompts."""
    rows: list[list[Cell]] = []
    doubtful = set()
    for name, figures in (at(split.metrics, "zero_shot_findings") or {}).items():
        area, low, high = (figures.get(f"auroc{end}") for end in ("", "_ci_low", "_ci_high"))
        if area is None:
            continue
        interval = None if low is None or high is None else (low, high)
        if interval and interval[0] <= 0.5:
            doubtful.add(len(rows))
        between = AREA.between(low, high) or too_few_units(figures.get("auroc_ci_units"))
        shown = strip(f"{named(name)}: AUROC {AREA.shown(area)}, {between}", area, interval, [0.5])
        counts = [number(figures.get("n")), percentage(figures.get("prevalence"))]
        rows.append([named(name), *counts, AREA.shown(area), between, AREA.shown(figures.get("auprc")), shown])
    columns = ["Finding", "Images", "Prevalence", "AUROC", "95 % interval", "AUPRC", ""]
    caption = "Tick: chance. Highlighted: the interval includes chance. Compare AUPRC with the prevalence."
    return Table(caption, columns, rows, marked=frozenset(doubtful)) if rows else None


def grounding_table(split: SplitResults) -> Table | None:
    """Every method, and the image centre as baseline."""
    rows = split.table("grounding")
    known = {
        name: metric for name, metric in GROUNDING_FIGURES.items() if any(row.get(name) is not None for row in rows)
    }
    if not known:
        return None
    cells = [
        [named(str(row["method"])), *(metric.of_figures(row, name) for name, metric in known.items())] for row in rows
    ]
    return Table(_grounding_caption(split), ["Method", *(GROUNDING_FIGURES[name].title for name in known)], cells)


def _grounding_caption(split: SplitResults) -> str:
    images, patients = (at(split.metrics, f"grounding.{name}") for name in ("images", "patients"))
    counts = {str(row["finding"]): int(row["images"]) for row in split.table("grounding_findings")}
    whose = f"{plural(images, 'image')} with boxes" if images else "the images with boxes"
    of = f" of {plural(patients, 'patient')}" if patients else ""
    each = (
        f" Images: {', '.join(f'{named(name).lower()} {count}' for name, count in counts.items())}." if counts else ""
    )
    return f"Over {whose}{of}, each finding counting equally; in brackets 95 % intervals by patient.{each}"


def grounding_verdict(split: SplitResults) -> str:
    """Say which methods beat always pointing at the image centre: only what the interval of the difference supports."""
    rows = {str(row["method"]): row for row in split.table("grounding")}
    known = rows.pop(CENTRE_PRIOR, {})
    better: dict[str, list[str]] = {}
    for name, metric in GROUNDING_FIGURES.items():
        lows = {method: row.get(f"{name}_over_prior_ci_low") for method, row in rows.items()}
        if known.get(name) is not None and any(low is not None for low in lows.values()):
            better[metric.phrase] = [
                named(method).lower() for method, low in lows.items() if low is not None and low > 0
            ]
    if not rows or known == {}:
        return ""
    if not better:
        return "There are too few patients with boxes to tell these maps from always pointing at the image centre."
    if not any(better.values()):
        return "No method is shown to beat always pointing at the image centre: no difference's interval is above 0."
    told = [f"{figure}: {' and '.join(methods) or 'none'}" for figure, methods in better.items()]
    return (
        f"Beat always pointing at the image centre (interval of the difference above 0), by metric: {'; '.join(told)}."
    )


def subgroup_charts(split: SplitResults) -> list[Chart]:
    """A forest plot of every headline metric that is known for a group."""
    charts = []
    for name, metric in split.headline.items():
        overall = at(split.metrics, name)
        rows = [row for row in _told(split) if row["metric"] == name]
        if overall is None or not rows:
            continue
        estimates = [
            Estimate(
                group_name(row["column"], row["group"]),
                int(row["n"]),
                float(row["value"]),
                row.get("low"),
                row.get("high"),
                metric.with_interval(row.get("value"), row.get("low"), row.get("high")),
                bool(row.get("flagged")),
            )
            for row in rows
        ]
        lowest = min(min(each.value if each.low is None else each.low for each in estimates), overall)
        # the scale begins at the next tenth below
        ends = (max(-1.0, int(lowest * 10 - (lowest < 0)) / 10), 1.0)
        note = f"Vertical line: all images, {metric.shown(overall)}."
        charts.append(Chart(metric.title, forest(f"{metric.title} by group", estimates, overall, ends), note))
    return charts


def flagged_groups(split: SplitResults) -> list[str]:
    """Flagged gaps, each in words."""
    return [group_gap(split, row) for row in _told(split) if row.get("flagged") and row["metric"] in split.headline]


def undetected_gap(split: SplitResults) -> str:
    """From which gap on in a share a worse group would have been found, by the group; empty where none was tested."""
    for name, metric in split.headline.items():
        gaps = [
            float(row["detectable"])
            for row in _told(split)
            if row["metric"] == name and row.get("detectable") is not None
        ]
        if gaps and metric.kind == "share":
            return f"{metric.phrase} {100 * min(gaps):.0f} to {100 * max(gaps):.0f} points, by the size of the group"
    return ""


def suppressed_groups(split: SplitResults) -> list[str]:
    """Groups too small for a figure, each once."""
    small = {
        group_name(row["column"], row["group"]): row["n"] for row in split.table("subgroups") if row.get("suppressed")
    }
    return [f"{name} ({plural(count, 'image')})" for name, count in small.items()]


def robustness_table(split: SplitResults) -> Table | None:
    """A row for each disturbance and its strength; of each metric the figure and its change."""
    table = split.table("robustness")
    metrics = [name for name in split.headline if any(row["metric"] == name for row in table)]
    if not metrics:
        return None
    conditions: dict[tuple[Any, Any], dict[str, Row]] = {}
    for row in table:
        conditions.setdefault((row["condition"], row.get("level")), {})[row["metric"]] = row
    worst = worst_condition(split)
    rows: list[list[Cell]] = []
    marked = set()
    for (condition, level), figures in conditions.items():
        if worst is not None and (condition, level) == (worst["condition"], worst.get("level")):
            marked.add(len(rows))
        cells = []
        for name in metrics:
            row, metric = figures.get(name, {}), split.headline[name]
            cells += [
                metric.with_interval(row.get("value"), row.get("low"), row.get("high")),
                metric.change(row.get("difference")),
            ]
        rows.append([named(str(condition)), "" if level is None else number(level), *cells])
    columns = [title for name in metrics for title in (split.headline[name].title, "change")]
    caption = "At most 200 images; 95 % intervals in brackets. Highlighted: the largest drop, inversion excluded."
    return Table(caption, ["Disturbance", "Strength", *columns], rows, words=2, marked=frozenset(marked))


def probe_table(split: SplitResults) -> Table | None:
    """Results of a linear probe on the frozen image embeddings, for each share of the labels."""
    probes = list(_probes(split))
    if len(probes) < 2:
        return None
    metrics = {name: split.headline[f"{split.task.labels.metrics}.{name}"] for name in PROBE_METRICS}
    rows = []
    for name, figures in probes:
        cells = []
        for key, metric in metrics.items():
            spread = figures.get(f"{key}_std")
            plain = metric.of_figures(figures, key)
            cells.append(plain if spread is None else f"{metric.shown(figures[key])} ± {metric.shown(spread)}")
        rows.append([name, *cells])
    columns = ["", *(metric.title for metric in metrics.values())]
    caption = "Mean ± standard deviation over several random draws of the labels, or the 95 % interval of one fit."
    probe = at(split.metrics, "linear_probe") or {}
    if available := probe.get("train_rows_available"):
        images = f"{available:,} {labelled(split.task)} training images"
        caption += f" All labels are {probe['train_rows']:,} of {images}, drawn by patient."
    return Table(caption, columns, rows)


def probe_chart(split: SplitResults) -> Chart | None:
    """Accuracy over the share of labels, with the zero-shot one, which needs none, as a level line."""
    points = [
        (float(place), figures["accuracy"])
        for place, (_, figures) in enumerate(_shares(split))
        if figures.get("accuracy") is not None
    ]
    if len(points) < 2:
        return None
    lines = [Line("linear probe", "train", points)]
    if (level := split.grading("accuracy")) is not None:
        lines.append(Line("no labels (zero-shot)", "val", [(points[0][0], level), (points[-1][0], level)]))
    ticks = {float(place): f"{share} %" for place, (share, _) in enumerate(_shares(split))}
    title = split.headline[f"{split.task.labels.metrics}.accuracy"].title
    svg = curves(f"{title} by share of labels", lines, "share of labels used", (0, 1), ticks, True)
    return Chart(title, svg, "Flat line: zero-shot, without labels.")


def prompts_table(split: SplitResults, left_out: Sequence[str]) -> Table | None:
    """Grading results with each single prompt; left_out: those that hold words of no training text."""
    rows = [
        [
            str(row["prompt"]),
            str(row["grade"]),
            percentage(row.get("accuracy")),
            KAPPA.shown(row.get("quadratic_weighted_kappa")),
            KAPPA.change(row.get("quadratic_weighted_kappa_difference")),
        ]
        for row in split.table("prompts")
    ]
    if not rows:  # a task without labels has none of their metrics either
        return None
    kappa = split.headline[f"{split.task.labels.metrics}.quadratic_weighted_kappa"].title
    columns = ["Prompt", capital(noun(split.task)), "Accuracy", kappa, "Change in kappa"]
    caption = f"Results if this prompt alone stands for its {noun(split.task)}."
    if left_out:
        quoted = ", ".join(f"“{text}”" for text in left_out)
        caption += f" Left out, since they hold words of no training text: {quoted}."
    return Table(caption, columns, rows)


def _told(split: SplitResults) -> list[Row]:
    return [row for row in split.table("subgroups") if not row.get("suppressed") and row.get("value") is not None]


def _shares(split: SplitResults) -> list[tuple[str, Mapping[str, Any]]]:
    """(per cent of the labels, figures), rising."""
    probes = at(split.metrics, "linear_probe") or {}
    shares = [(name.removeprefix("share_"), figures) for name, figures in probes.items() if name.startswith("share_")]
    return sorted(shares, key=lambda each: float(each[0]))


def _probes(split: SplitResults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if figures := at(split.metrics, split.task.labels.metrics):
        yield "No labels (zero-shot)", {metric: figures.get(metric) for metric in PROBE_METRICS}
    for share, figures in _shares(split):
        # how many images it learnt from, on average over the draws
        labels = [
            int(row["labels"])
            for row in split.table("probe")
            if row["method"] == "linear_probe" and str(row["share"]) == share
        ]
        count = f" ({plural(sum(labels) / len(labels), 'image')})" if labels else ""
        yield f"Linear probe, {share} % of the labels{count}", figures
    if figures := at(split.metrics, "knn"):
        yield "k nearest neighbours, all labels", figures
