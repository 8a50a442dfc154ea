"""Plots of an evaluation as inline SVG: curves, reliability, intervals of groups, intervals among marks.

As in `charts`, series differ in dash and shape as well as in colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from knee_siglip.report.html import svg
from knee_siglip.report.html.numbers import percent

TITLED_BOTTOM = 40
"""Margin below axes whose x has a name."""

GROUP_LENGTH, GROUP_WIDTH, COUNT_WIDTH, FIGURE_WIDTH = 19, 122, 34, 112
ROW = 19

STRIP_WIDTH, STRIP_HEIGHT = 150, 14


@dataclass(frozen=True)
class Line:
    """style: class of the style sheet (`train`, `val`, `test`); points: (x, y), x rising."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bin:
    """Of a reliability diagram: mean confidence, share that was right, and of how many rows."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Estimate:
    """A row of a forest plot. shown: the figure in words; marked: drawn as one that stands out."""

    name: str
    count: int
    value: float
    low: float | None
    high: float | None
    shown: str
    marked: bool = False


def curves(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_range: svg.Range | None = None,
    x_ticks: Mapping[float, str] | None = None,
    shares: bool = False,
) -> Markup:
    """Lines over one another.

    Args:
        title: for those who do not see the chart.
        lines: any number of them, of any length.
        x_label: what x counts.
        y_range: None is from 0, or from the lowest figure where that is negative, to the highest.
        x_ticks: labels at places of x; None is round numbers.
        shares: y is shown in per cent.
    """
    xs = [x for each in lines for x, _ in each.points]
    ys = [y for each in lines for _, y in each.points]
    low, high = y_range or (min([0.0, *ys]), max(ys, default=1.0))
    y_ticks = svg.nice_ticks(low, high, 4)
    if y_range is None:
        low, high = y_ticks[0], max(y_ticks[-1], low + 1e-9)
    x_range = (min(xs, default=0.0), max(xs, default=1.0))
    axes = svg.Axes(x_range, (low, high), bottom=TITLED_BOTTOM)
    x_ticks = {tick: svg.short(tick) for tick in svg.nice_ticks(*x_range, 5)} if x_ticks is None else x_ticks
    parts = axes.drawn(x_ticks, {tick: percent(tick) if shares else svg.short(tick) for tick in y_ticks})
    for each in lines:
        parts += _curve(axes, each)
    return svg.picture(title, svg.WIDTH, svg.HEIGHT, [*parts, _x_title(x_label, svg.HEIGHT)])


def reliability(title: str, series: Mapping[str, Sequence[Bin]]) -> Markup:
    """Share that was right over confidence, against the diagonal where both are one; below how many rows each bin has.

    series: style to its bins, in order of confidence.
    """
    height, floor = 260.0, 60.0
    axes = svg.Axes((0, 1), (0, 1), height, bottom=TITLED_BOTTOM + floor)
    quarters = {tick / 4: percent(tick / 4) for tick in range(5)}
    parts = axes.drawn(quarters, quarters)
    parts.append(svg.polyline([(axes.x(0), axes.y(0)), (axes.x(1), axes.y(1))], "ideal"))
    for style, bins in series.items():
        places = [(each.confidence, each.accuracy) for each in bins]
        parts += _curve(axes, Line("", style, places))
    most = max((each.count for bins in series.values() for each in bins), default=1)
    width = 8 / len(series) if series else 8
    for lane, (style, bins) in enumerate(series.items()):
        for each in bins:
            tall = each.count / most * (floor - 26)
            x = axes.x(each.confidence) + (lane - len(series) / 2) * width
            parts.append(svg.rectangle(x, height - 18 - tall, width, tall, style))
    parts.append(svg.line(svg.LEFT, height - 18, svg.WIDTH - svg.RIGHT, height - 18, "axis"))
    parts.append(svg.words(svg.LEFT, height - floor + 6, f"images in each bin, at most {most:,}", style="value"))
    return svg.picture(title, svg.WIDTH, height, [*parts, _x_title("confidence", height)])


def forest(title: str, rows: Sequence[Estimate], overall: float, ends: svg.Range) -> Markup:
    """One row for each group: its figure as a dot, its interval as a line; the upright stroke is the overall figure."""
    left, right = GROUP_WIDTH + COUNT_WIDTH, svg.WIDTH - FIGURE_WIDTH
    floor = len(rows) * ROW + 4
    x = partial(svg.on_scale, ends=ends, start=left + 6, length=right - left - 12)
    parts = [svg.line(x(overall), 0, x(overall), floor, "ideal")]
    for place, row in enumerate(rows):
        middle = place * ROW + ROW / 2 + 2
        style = "over" if row.marked else "train"
        parts.append(svg.words(0, middle + 4, svg.clip(row.name, GROUP_LENGTH), full=row.name))
        parts.append(svg.words(left - 6, middle + 4, f"{row.count:,}", "end", "value"))
        if row.low is not None and row.high is not None:
            parts.append(svg.line(x(row.low), middle, x(row.high), middle, f"bar {style}"))
        parts.append(svg.dot(x(row.value), middle, 3.6, style))
        parts.append(svg.words(svg.WIDTH, middle + 4, row.shown, "end", "value"))
    parts.append(svg.line(left, floor, right, floor, "axis"))
    for tick in svg.nice_ticks(*ends, 3):
        if ends[0] <= tick <= ends[1]:
            parts += [svg.line(x(tick), floor, x(tick), floor + 4, "axis")]
            parts += [svg.words(x(tick), floor + 17, f"{tick:g}", "middle", "value")]
    return svg.picture(title, svg.WIDTH, floor + 22, parts)


def strip(
    title: str, value: float, interval: svg.Range | None, marks: Sequence[float], ends: svg.Range = (0, 1)
) -> Markup:
    """A figure with its interval on a scale, among `marks`: what it is to be compared with."""
    x = partial(svg.on_scale, ends=ends, start=5, length=STRIP_WIDTH - 10)
    middle = STRIP_HEIGHT / 2
    parts = [svg.line(x(ends[0]), middle, x(ends[1]), middle, "grid")]
    parts += [svg.line(x(mark), 2, x(mark), STRIP_HEIGHT - 2, "mark") for mark in marks]
    if interval is not None:
        parts.append(svg.line(x(interval[0]), middle, x(interval[1]), middle, "bar train"))
    parts.append(svg.dot(x(value), middle, 3, "train"))
    return svg.picture(title, STRIP_WIDTH, STRIP_HEIGHT, parts, "meter")


def _curve(axes: svg.Axes, series: Line) -> list[Markup]:
    """A line, with dots while they are few enough to be told apart."""
    places = [(axes.x(x), axes.y(y)) for x, y in series.points]
    if not places:
        return []
    dots = [svg.dot(x, y, 2.4, series.style) for x, y in places] if len(places) <= 12 else []
    return [svg.polyline(places, f"curve {series.style}"), *dots]


def _x_title(text: str, height: float) -> Markup:
    return svg.words((svg.LEFT + svg.WIDTH - svg.RIGHT) / 2, height - 4, text, "middle")
