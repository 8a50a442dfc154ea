"""Charts show what they are given, to scale, and escape it."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from knee_siglip.report.html.charts import Series, bars, legend, meter, steps
from knee_siglip.report.html.svg import clip, nice_ticks


def widths(svg: Markup, style: str) -> list[float]:
    return [
        float(each.get("width", "")) for each in ElementTree.fromstring(svg).iter("rect") if each.get("class") == style
    ]


def test_bars_are_as_long_as_their_shares() -> None:
    svg = bars("grades", ["0", "1"], [Series("train", "train", [0.25, 0.5]), Series("val", "val", [0.5, 0.0])])
    short, long = widths(svg, "train")
    assert long == pytest.approx(2 * short, abs=0.2)
    assert widths(svg, "val")[0] == long
    assert ">25 %<" in svg
    assert ">50 %<" in svg


def test_bars_escape_and_clip_labels_and_keep_the_whole_one_in_a_title() -> None:
    svg = bars('a "title" & more', ["<script>alert('a long label')</script>"], [Series("train", "train", [1.0])])
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "title" & more'
    assert [title.text for title in root.iter("title")] == ["<script>alert('a long label')</script>"]


def test_a_histogram_is_as_high_as_its_shares() -> None:
    svg = steps("grey", np.array([0.0, 1.0, 2.0]), [Series("train", "train", np.array([0.2, 0.4]))])
    path = next(each for each in ElementTree.fromstring(svg).iter("path") if "outline" in str(each.get("class")))
    start, *heights = [float(y) for y in re.findall(r"(?:V|M[\d.]+ )([\d.]+)", str(path.get("d")))]
    first, second, end = heights
    assert end == start
    assert start - second == pytest.approx(2 * (start - first), abs=0.2)


def test_charts_of_nothing_are_still_charts() -> None:
    empty = Series("train", "train", [0.0])
    for chart in (
        bars("nothing", [], []),
        bars("nothing", ["0"], [empty]),
        steps("nothing", np.array([0.0, 1.0]), [empty]),
    ):
        assert ElementTree.fromstring(chart).tag.endswith("svg")


def test_a_meter_ends_at_the_figure_that_warns_and_says_so() -> None:
    calm = meter(0.8, (0.5, 1), 0.7, False, 0.6)
    loud = meter(0.8, (0.5, 1), 0.7, True, 0.75)
    assert widths(calm, "level") == [pytest.approx(30)]
    assert widths(loud, "over") == [pytest.approx(75)]
    assert "warning level 0.7: a warning" in loud
    assert not widths(calm, "over")


def test_a_meter_stays_on_its_scale() -> None:
    assert widths(meter(7, (0, 1), 0.5, True), "over") == [150]


def test_the_legend_names_every_series() -> None:
    assert legend({"<val>": "val"}).count("&lt;val&gt;") == 1


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 0.4, [0, 0.1, 0.2, 0.3, 0.4]), (28, 203, [0, 50, 100, 150, 200, 250]), (3, 3, [3])],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 4) == ticks


def test_clipping_keeps_what_fits() -> None:
    assert (clip("abc", 3), clip("abcd", 3)) == ("abc", "ab…")
