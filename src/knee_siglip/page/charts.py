"""Small charts as inline SVG, coloured by the page's style sheet.

Own code, since what is needed is a few rectangles: matplotlib takes a second and more to import, draws text as
outlines that no screen reader reads, and needs tens of kB for each chart. Series differ in lightness, fill and dash as
well as in colour, for readers who see no colours and for printers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from knee_siglip.page.figures import percent

WIDTH = 440
"""Of every chart, in the units of its view box; the page scales it to its column."""

LABEL_WIDTH, LABEL_LENGTH = 128, 17
"""Room left of horizontal bars, and the characters that fit in it."""

BAR, GAP = 11, 9
VALUE_WIDTH = 40
LEFT, RIGHT, TOP, BOTTOM = 42, 26, 8, 24
HEIGHT = 190

NICE_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Series:
    """One line or set of bars. style: class of the style sheet (`train`, `val`, `test`); shares: (K,), 0-1."""

    name: str
    style: str
    shares: Sequence[float]


def bars(title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Horizontal bars: for each label one bar of each series, with its share written beside it."""
    highest = max((share for each in series for share in each.shares), default=0) or 1
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    block = BAR * len(series) + GAP
    parts = []
    for place, label in enumerate(labels):
        top = place * block + GAP / 2
        middle = top + BAR * len(series) / 2
        parts.append(_text(LABEL_WIDTH - 8, middle + 4, clip(label, LABEL_LENGTH), "end", full=label))
        for line, each in enumerate(series):
            share = each.shares[place]
            y, width = top + line * BAR, share / highest * room
            parts.append(_rectangle(LABEL_WIDTH, y, max(width, 0.5), BAR - 1.5, each.style))
            parts.append(_text(LABEL_WIDTH + width + 4, y + BAR - 2.5, percent(share), style="value"))
    axis = _line(LABEL_WIDTH, 0, LABEL_WIDTH, len(labels) * block, "axis")
    return _svg(title, WIDTH, max(1, len(labels)) * block, [*parts, axis])


def steps(title: str, edges: np.ndarray, series: Sequence[Series]) -> Markup:
    """Outlines of histograms over one another. edges: (K + 1,), rising; shares of each series: (K,)."""
    highest = max((share for each in series for share in each.shares), default=0) or 1
    ticks = nice_ticks(0, highest, 4)
    top = max(ticks[-1], highest)
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return TOP + (1 - share / top) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "axis" if tick == 0 else "grid"))
        parts.append(_text(LEFT - 6, y(tick) + 4, percent(tick), "end"))
    for tick in nice_ticks(low, high, 6):
        if low <= tick <= high:
            parts.append(_line(x(tick), y(0), x(tick), y(0) + 4, "axis"))
            parts.append(_text(x(tick), HEIGHT - 5, _short(tick), "middle"))
    parts += [
        _outline([x(edge) for edge in edges], [y(share) for share in each.shares], y(0), each.style) for each in series
    ]
    return _svg(title, WIDTH, HEIGHT, parts)


def meter(value: float, ends: tuple[float, float], mark: float, warned: bool, surely: float | None = None) -> Markup:
    """A bar on a scale between `ends`, with a stroke at the warning level.

    surely: lower end of the value's interval, where the bar ends and a thin line up to the value starts.
    """
    width, height = 150, 14

    def x(figure: float) -> float:
        return (min(max(figure, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0]) * width

    bar = x(value if surely is None else surely)
    parts = [_rectangle(0, 4, width, 6, "track"), _rectangle(0, 4, max(1, bar), 6, "over" if warned else "level")]
    if surely is not None:
        parts.append(_line(bar, 7, x(value), 7, "whisker"))
    parts.append(_line(x(mark), 0, x(mark), height, "mark"))
    title = f"{value:.2f}, warning level {mark:g}{': a warning' if warned else ''}"
    return _svg(title, width, height, parts, "meter")


def legend(series: Mapping[str, str]) -> Markup:
    """series: name to style."""
    keys = [
        Markup('<span class="key">{}{}</span>').format(
            _svg("", 22, 12, [_rectangle(1, 1, 20, 10, style)], "swatch"), name
        )
        for name, style in series.items()
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(keys))


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers at even distances from at or below `low` to at or above `high`, about as many as asked for."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(nice * power for nice in NICE_STEPS if nice * power >= rough * 0.999)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(round(place * step, 12)) for place in np.arange(first, last + 1)]


def clip(text: str, length: int) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _short(tick: float) -> str:
    """60000 as `60 k`: ticks stand close."""
    if abs(tick) >= 1e6:
        return f"{tick / 1e6:g} M"
    return f"{tick / 1e3:g} k" if abs(tick) >= 1e4 else f"{tick:,g}"


def _svg(title: str, width: float, height: float, parts: Sequence[Markup], style: str = "chart") -> Markup:
    """Without a title it is decoration, and screen readers pass over it."""
    said = Markup('role="img" aria-label="{}"').format(title) if title else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" {}>{}</svg>').format(
        style, width, height, said, Markup("").join(parts)
    )


def _outline(xs: Sequence[float], ys: Sequence[float], floor: float, style: str) -> Markup:
    corners = [f"M{xs[0]:.1f} {floor:.1f}"]
    corners += [f"V{y:.1f}H{right:.1f}" for y, right in zip(ys, xs[1:], strict=True)]
    return Markup('<path class="outline {}" d="{}V{:.1f}"/>').format(style, "".join(corners), floor)


def _rectangle(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        style, x, y, width, height
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(style, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "label", full: str = "") -> Markup:
    """full: what the pointer shows where `text` is clipped."""
    title = Markup("<title>{}</title>").format(full) if full not in ("", text) else ""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(
        style, x, y, anchor, text, title
    )
