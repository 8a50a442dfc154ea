"""Small charts as inline SVG, coloured by the page's style sheet.

Own code, since what is needed is a few rectangles: matplotlib's SVG is eight times as large, takes a hundred times as
long, and fixes its colours in the file (benchmarks/libraries.py). Series differ in lightness, fill and dash as
well as in colour, for readers who see no colours and for printers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from knee_siglip.report.html import svg
from knee_siglip.report.html.numbers import percent

LABEL_WIDTH, LABEL_LENGTH = 128, 17
"""Room left of horizontal bars, and the characters that fit in it."""

BAR, GAP = 11, 9
VALUE_WIDTH = 40


@dataclass(frozen=True)
class Chart:
    """svg: inline; note: what the reader must know of it."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line or set of bars. style: class of the style sheet (`train`, `val`, `test`); shares: (K,), 0-1."""

    name: str
    style: str
    shares: Sequence[float]


def bars(title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Horizontal bars: for each label one bar of each series, with its share written beside it."""
    highest = max((share for each in series for share in each.shares), default=0) or 1
    room = svg.WIDTH - LABEL_WIDTH - VALUE_WIDTH
    block = BAR * len(series) + GAP
    parts = []
    for place, label in enumerate(labels):
        top = place * block + GAP / 2
        middle = top + BAR * len(series) / 2
        parts.append(svg.words(LABEL_WIDTH - 8, middle + 4, svg.clip(label, LABEL_LENGTH), "end", full=label))
        for lane, each in enumerate(series):
            share = each.shares[place]
            y, width = top + lane * BAR, share / highest * room
            parts.append(svg.rectangle(LABEL_WIDTH, y, max(width, 0.5), BAR - 1.5, each.style))
            parts.append(svg.words(LABEL_WIDTH + width + 4, y + BAR - 2.5, percent(share), style="value"))
    parts.append(svg.line(LABEL_WIDTH, 0, LABEL_WIDTH, len(labels) * block, "axis"))
    return svg.picture(title, svg.WIDTH, max(1, len(labels)) * block, parts)


def steps(title: str, edges: np.ndarray, series: Sequence[Series]) -> Markup:
    """Outlines of histograms over one another. edges: (K + 1,), rising; shares of each series: (K,)."""
    highest = max((share for each in series for share in each.shares), default=0) or 1
    ticks = svg.nice_ticks(0, highest, 4)
    low, high = float(edges[0]), float(edges[-1])
    axes = svg.Axes((low, high), (0, max(ticks[-1], highest)))
    x_ticks = {tick: svg.short(tick) for tick in svg.nice_ticks(low, high, 6)}
    parts = axes.drawn(x_ticks, {tick: percent(tick) for tick in ticks})
    xs, floor = [axes.x(edge) for edge in edges], axes.y(0)
    for each in series:
        tops = "".join(f"V{axes.y(share):.1f}H{x:.1f}" for share, x in zip(each.shares, xs[1:], strict=True))
        path = Markup('<path class="outline {}" d="M{:.1f} {:.1f}{}V{:.1f}"/>')
        parts.append(path.format(each.style, xs[0], floor, tops, floor))
    return svg.picture(title, svg.WIDTH, svg.HEIGHT, parts)


def meter(value: float, ends: tuple[float, float], mark: float, warned: bool, surely: float | None = None) -> Markup:
    """A bar on a scale between `ends`, with a stroke at the warning level.

    surely: lower end of the value's interval, where the bar ends and a thin line up to the value starts.
    """
    width, height = 150, 14
    x = partial(svg.on_scale, ends=ends, start=0, length=width)
    bar = x(value if surely is None else surely)
    parts = [svg.rectangle(0, 4, width, 6, "track"), svg.rectangle(0, 4, max(1, bar), 6, "over" if warned else "level")]
    if surely is not None:
        parts.append(svg.line(bar, 7, x(value), 7, "whisker"))
    parts.append(svg.line(x(mark), 0, x(mark), height, "mark"))
    title = f"{value:.2f}, warning level {mark:g}{': a warning' if warned else ''}"
    return svg.picture(title, width, height, parts, "meter")


def legend(series: Mapping[str, str]) -> Markup:
    """series: name to style."""
    keys = [
        Markup('<span class="key">{}{}</span>').format(
            svg.picture("", 22, 12, [svg.rectangle(1, 1, 20, 10, style)], "swatch"), name
        )
        for name, style in series.items()
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(keys))
