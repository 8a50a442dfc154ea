"""Figures read well, and nothing of a nested dict is lost on the way to the table."""

import pytest

from knee_siglip.report.html.numbers import Group, innermost, number, percent, readable, side_by_side


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2120, "2,120"),
        (512.0, "512"),
        (0.99056, "0.991"),
        (1.5049, "1.50"),
        (126.43, "126.4"),
        (1234.5, "1,234"),
        (1e-9, "< 0.001"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (None, "–"),
        (True, "yes"),
        ("as it is", "as it is"),
    ],
)
def test_a_number_is_shown_short(value: object, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0 %"), (0.00001, "< 0.1 %"), (0.022, "2.2 %"), (0.5, "50 %"), (1, "100 %")]
)
def test_a_share_is_shown_in_per_cent(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_names_of_metrics_become_words() -> None:
    assert [readable(name) for name in ("kl_grade", "text_words", "auroc")] == ["KL grade", "text words", "AUROC"]


def test_counts_get_their_share_and_statistics_share_a_row() -> None:
    columns = {
        "train": {"rows": 4, "sides": {"left": 3, "right": 1}, "text_words": {"mean": 2.5, "max": 4.0}},
        "val": {"rows": 2, "sides": {"left": 2}},
    }
    assert side_by_side(columns) == [
        Group("", [("rows", ["4", "2"])]),
        Group("sides", [("left", ["3 (75 %)", "2 (100 %)"]), ("right", ["1 (25 %)", "–"])]),
        Group("Measures", [("text words: mean / max", ["2.50 / 4", "– / –"])]),
    ]


def test_no_figures_give_no_table() -> None:
    assert side_by_side({}) == []
    assert side_by_side({"train": {}}) == []


def test_the_innermost_dicts_become_rows() -> None:
    nested = {"val": {"mean": {"ks": 0.1, "p": 1.0}, "side": {"v": 0.2}}, "n": 3}
    assert innermost(nested) == [
        (("val", "mean"), {"ks": 0.1, "p": 1.0}),
        (("val", "side"), {"v": 0.2}),
        ((), {"n": 3}),
    ]
