"""The few SVG shapes that all charts are made of, and a pair of axes. Colours come from the page's style sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 440, 190
"""Of a chart, in the units of its view box; the page scales it to its column."""

LEFT, RIGHT, TOP, BOTTOM = 42, 26, 8, 24
"""Margins around what is drawn between axes."""

NICE_STEPS = (1, 2, 2.5, 5, 10)

Range = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """Two scales: `x_range` and `y_range` fill the chart but for its margins. bottom: the margin below."""

    x_range: Range
    y_range: Range
    height: float = HEIGHT
    bottom: float = BOTTOM

    def x(self, value: float) -> float:
        """From a figure to its place."""
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From a figure to its place; upwards, as in a book."""
        low, high = self.y_range
        return TOP + (1 - (value - low) / ((high - low) or 1)) * (self.height - TOP - self.bottom)

    def drawn(self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str]) -> list[Markup]:
        """Grid lines at the ticks of y, strokes at those of x, and their labels; ticks outside are left out."""
        floor, parts = self.y(self.y_range[0]), []
        for tick, label in y_ticks.items():
            if self.y_range[0] <= tick <= self.y_range[1]:
                style = "axis" if tick == self.y_range[0] else "grid"
                parts.append(line(LEFT, self.y(tick), WIDTH - RIGHT, self.y(tick), style))
                parts.append(words(LEFT - 6, self.y(tick) + 4, label, "end"))
        for tick, label in x_ticks.items():
            if self.x_range[0] <= tick <= self.x_range[1]:
                parts.append(line(self.x(tick), floor, self.x(tick), floor + 4, "axis"))
                parts.append(words(self.x(tick), floor + 19, label, "middle"))
        return parts


def on_scale(value: float, ends: Range, start: float, length: float) -> float:
    """From a figure to its place on a scale of this length; what lies beyond its ends is drawn at them."""
    return start + (min(max(value, ends[0]), ends[1]) - ends[0]) / ((ends[1] - ends[0]) or 1) * length


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers at even distances from at or below `low` to at or above `high`, about as many as asked for."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(nice * power for nice in NICE_STEPS if nice * power >= rough * 0.999)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(round(place * step, 12)) for place in np.arange(first, last + 1)]


def short(tick: float) -> str:
    """60000 as `60 k`: ticks stand close."""
    if abs(tick) >= 1e6:
        return f"{tick / 1e6:g} M"
    return f"{tick / 1e3:g} k" if abs(tick) >= 1e4 else f"{tick:,g}"


def clip(text: str, length: int) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def picture(title: str, width: float, height: float, parts: Sequence[Markup], style: str = "chart") -> Markup:
    """The whole image. Without a title it is decoration, and screen readers pass over it."""
    said = Markup('role="img" aria-label="{}"').format(title) if title else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" {}>{}</svg>').format(
        style, width, height, said, Markup("").join(parts)
    )


def rectangle(x: float, y: float, width: float, height: float, style: str) -> Markup:
    """style: a class of the style sheet, here and below."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        style, x, y, width, height
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight one."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(style, x1, y1, x2, y2)


def polyline(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """Straight pieces from point to point."""
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="M{}"/>').format(style, corners)


def dot(x: float, y: float, radius: float, style: str) -> Markup:
    """A filled circle."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(style, x, y, radius)


def words(x: float, y: float, text: str, anchor: str = "start", style: str = "label", full: str = "") -> Markup:
    """full: what the pointer shows where `text` is clipped."""
    title = Markup("<title>{}</title>").format(full) if full not in ("", text) else ""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(
        style, x, y, anchor, text, title
    )
