"""Plots show what they are given, to scale, and escape it."""

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from knee_siglip.report.html.plots import Bin, Estimate, Line, curves, forest, reliability, strip
from knee_siglip.report.html.svg import Axes
from knee_siglip.report.html.tables import HeatTable

HOSTILE = "<script>alert('x')</script>"


def paths(svg: Markup, style: str) -> list[list[tuple[float, float]]]:
    """Corners of every path with these classes."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", str(each.get("d")))]
        for each in ElementTree.fromstring(svg).iter("path")
        if each.get("class") == style
    ]


def dots(svg: Markup, style: str) -> list[tuple[float, float]]:
    return [
        (float(str(each.get("cx"))), float(str(each.get("cy"))))
        for each in ElementTree.fromstring(svg).iter("circle")
        if each.get("class") == style
    ]


def texts(svg: Markup) -> list[str]:
    return [str(each.text) for each in ElementTree.fromstring(svg).iter("text")]


def test_axes_run_from_left_to_right_and_upwards() -> None:
    axes = Axes((0, 10), (0, 1))
    assert axes.x(0) < axes.x(5) < axes.x(10)
    assert axes.x(5) == pytest.approx((axes.x(0) + axes.x(10)) / 2)
    assert axes.y(0) > axes.y(0.5) > axes.y(1)


def test_a_line_passes_through_its_points_in_proportion() -> None:
    svg = curves("loss", [Line("train", "train", [(0, 4), (50, 2), (100, 0)])], "step")
    ((x1, y1), (x2, y2), (x3, y3)) = paths(svg, "curve train")[0]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2)
    assert y1 < y3
    assert dots(svg, "train")[1] == pytest.approx((x2, y2), abs=0.2)
    assert "step" in texts(svg)


def test_lines_share_their_axes() -> None:
    svg = curves("loss", [Line("a", "train", [(0, 1), (1, 1)]), Line("b", "val", [(0, 2), (1, 1)])], "step")
    train, val = paths(svg, "curve train")[0], paths(svg, "curve val")[0]
    assert train[1] == val[1]
    assert train[0][1] > val[0][1]


def test_long_lines_have_no_dots() -> None:
    svg = curves("loss", [Line("train", "train", [(step, 1) for step in range(500)])], "step")
    assert dots(svg, "train") == []


def test_negative_figures_stay_inside() -> None:
    svg = curves("kappa", [Line("a", "train", [(0, -0.4), (1, 0.4)])], "step")
    assert all(0 < y < 190 for _, y in paths(svg, "curve train")[0])


def test_reliability_lies_on_the_diagonal_where_confidence_is_truth() -> None:
    svg = reliability("r", {"train": [Bin(0.25, 0.25, 10), Bin(0.75, 0.75, 30)], "val": [Bin(0.5, 0.9, 20)]})
    ((x1, y1), (x2, y2)) = paths(svg, "ideal")[0]
    for x, y in dots(svg, "train"):
        assert (y - y1) / (y2 - y1) == pytest.approx((x - x1) / (x2 - x1), abs=0.01)
    (x, y) = dots(svg, "val")[0]
    assert (y - y1) / (y2 - y1) > (x - x1) / (x2 - x1)
    heights = [
        float(str(each.get("height")))
        for each in ElementTree.fromstring(svg).iter("rect")
        if each.get("class") == "train"
    ]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.3)
    assert any("at most 30" in text for text in texts(svg))


def test_a_forest_has_an_interval_about_each_dot_and_a_line_for_all() -> None:
    rows = [
        Estimate("side: left", 1200, 0.8, 0.7, 0.9, "80 %"),
        Estimate(HOSTILE, 40, 0.5, None, None, "50 %", marked=True),
    ]
    svg = forest("f", rows, 0.8, (0, 1))
    ((low, _), (high, _)) = paths(svg, "bar train")[0]
    assert dots(svg, "train")[0][0] == pytest.approx((low + high) / 2, abs=0.1)
    assert paths(svg, "ideal")[0][0][0] == pytest.approx(dots(svg, "train")[0][0], abs=0.1)
    assert len(dots(svg, "over")) == 1
    assert paths(svg, "bar over") == []
    assert {"1,200", "80 %", "side: left"} <= set(texts(svg))
    assert "<script" not in svg


def test_a_strip_stays_on_its_scale() -> None:
    svg = strip("s", -0.3, (-0.5, 1.4), [0.5])
    (x, _) = dots(svg, "train")[0]
    ((low, _), (high, _)) = paths(svg, "bar train")[0]
    assert 0 <= low == x < high <= 150
    assert len(paths(svg, "mark")) == 1


def test_plots_of_nothing_are_still_plots() -> None:
    empty = (
        curves("n", [], "step"),
        curves("n", [Line("a", "train", [])], "step"),
        curves("n", [Line("a", "train", [(3, 0)])], "step"),
        reliability("n", {}),
        forest("n", [], 0.5, (0.5, 0.5)),
        strip("n", 0.5, None, []),
    )
    for svg in empty:
        assert ElementTree.fromstring(svg).get("aria-label")
        assert "nan" not in svg


def test_a_heat_table_shades_by_the_share_of_the_row() -> None:
    heat = HeatTable("", "", ["a", "b"], [[3, 1], [0, 0]])
    assert [heat.share(row, column) for row in (0, 1) for column in (0, 1)] == [0.75, 0.25, 0, 0]
