"""Charts hold every split's shares, and odd columns do not break them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from knee_siglip.report.validation.distributions import distribution_charts
from knee_siglip.validation.validate import NOTHING_READ
from toys import KNEE


def make(**columns: Sequence[Any]) -> pd.DataFrame:
    same = {"image_id": "a", "width": 1, "height": 1, "text": "knee"}
    count = max(map(len, columns.values()), default=4)
    splits = ["train", "train", "train", "test"] if count == 4 else ["train"] * count
    return pd.DataFrame({"split": splits} | same | columns, index=pd.RangeIndex(2, count + 2))


def titles(table: pd.DataFrame) -> list[str]:
    return [chart.title for chart in distribution_charts(table, KNEE)]


def test_shares_are_of_the_split() -> None:
    (chart,) = distribution_charts(make(side=["left", "Left ", "right", "right"]), KNEE)
    assert chart.title == "Side"
    for share in ("67 %", "33 %", "100 %", "0 %"):
        assert f">{share}<" in chart.svg
    assert chart.svg.count(">left<") == 1


def test_unknown_grades_are_told_and_not_counted() -> None:
    (chart,) = distribution_charts(make(kl_grade=pd.array([0, 1, None, 1], dtype="Int64")), KNEE)
    assert ">50 %<" in chart.svg
    assert chart.note == "Rows without a value are excluded (1)."


def test_a_value_that_all_share_needs_no_chart() -> None:
    assert titles(make(view=["ap"] * 4, mean=[1.0] * 4)) == []


def test_unreadable_images_count_only_for_what_the_row_says() -> None:
    table = make(image_id=["", "", "", ""], mean=[1.0, 2, 3, 4], side=["left", "right", "left", "left"])
    assert titles(table) == ["Side"]


def test_few_sizes_are_named_and_many_are_histograms() -> None:
    assert titles(make(width=[10, 10, 20, 20], height=[5, 5, 5, 5])) == ["Image size in pixels"]
    many = make(width=np.arange(100) + 200, height=[300] * 100)
    assert titles(many) == ["Image width in pixels"]


def test_rare_values_are_counted_together() -> None:
    (chart,) = distribution_charts(make(view=[f"v{number:02d}" for number in range(40)]), KNEE)
    assert ">other<" in chart.svg
    assert chart.note == "40 values; the rarer ones are grouped as other."


def test_one_huge_value_does_not_squeeze_the_rest() -> None:
    values = np.concatenate([np.linspace(50, 150, 1000), [1e9]])
    (chart,) = distribution_charts(make(mean=values), KNEE)
    assert ">100<" in chart.svg
    assert "the outermost bins include values beyond" in chart.note
    assert "1,000,000,000" in chart.note


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_left_out(bad: float) -> None:
    (chart,) = distribution_charts(make(mean=[bad, 1.0, 2.0, 3.0]), KNEE)
    assert ">50 %<" in chart.svg


def test_tables_without_rows_have_no_charts() -> None:
    assert distribution_charts(NOTHING_READ, KNEE) == []
    assert distribution_charts(make().iloc[:0], KNEE) == []
