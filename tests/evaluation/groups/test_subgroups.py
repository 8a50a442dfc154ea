"""Whom a model serves worse: groups by hand, gaps that were planted, and what is too small to be shown."""

from dataclasses import replace

import numpy as np
import pytest

from knee_siglip.evaluation.groups.subgroups import count_subgroups, find_subgroups, subgroups_table
from knee_siglip.evaluation.headline import headline_from_predictions, headlines
from knee_siglip.evaluation.predictions import predictions_of
from toys import KNEE

RESAMPLES = 300


@pytest.fixture
def table(make_split, data_of):
    """160 knees, both sides of 80 patients; `site` has 40 knees of B, the rest of A, one of them unknown."""
    split = make_split(noise=0.3, wordings=10)
    rows = split.rows.assign(
        image_id=[f"{row:064x}" for row in range(160)],
        side=["left", "right"] * 80,
        site=["B"] * 40 + ["A"] * 119 + [None],
    )
    split = replace(split, rows=rows)
    return predictions_of(split, data_of(split, subgroups=["side", "site"]).params)


def of(rows, group, metric="zero_shot_kl.accuracy"):
    return next(row for row in rows if row["group"] == group and row["metric"] == metric)


def test_each_group_has_the_figures_of_its_rows_alone(table):
    rows = subgroups_table(table, ["side", "site"], RESAMPLES)
    for column, group, count in (("side", "left", 80), ("side", "right", 80), ("site", "A", 119), ("site", "B", 40)):
        expected = headline_from_predictions(table[table[column] == group])
        found = {row["metric"]: row for row in rows if row["group"] == group}
        assert found.keys() == expected.keys() == headlines(KNEE.labels).keys()
        for metric, value in expected.items():
            row = found[metric]
            assert row["value"] == pytest.approx(value)
            few = group == "B" and metric.endswith(("kappa", "macro_auroc"))  # eight patients or fewer of each grade
            assert row["low"] is None if few else row["low"] <= value <= row["high"]
            assert (row["column"], row["n"], row["suppressed"]) == (column, count, False)
    assert of(rows, "B")["patients"] == 20


def test_the_gap_is_to_all_other_rows(table):
    row = of(subgroups_table(table, ["site"], RESAMPLES), "B")
    inside, outside = (headline_from_predictions(table[mask]) for mask in (table["site"] == "B", table["site"] != "B"))
    assert row["difference"] == pytest.approx(inside["zero_shot_kl.accuracy"] - outside["zero_shot_kl.accuracy"])


def test_a_group_that_is_read_worse_is_flagged_and_no_other(table):
    table.loc[table["site"] == "B", "kl_grade_predicted"] = (table["kl_grade"] + 1) % 5
    rows = subgroups_table(table, ["side", "site"], RESAMPLES)
    assert of(rows, "B")["flagged"]
    assert {(row["group"], row["metric"]) for row in rows if row["flagged"]} <= {
        ("B", name) for name in headlines(KNEE.labels) if name.startswith("zero_shot_kl")
    }
    assert not of(rows, "A")["flagged"]  # it differs as surely, but is better
    assert count_subgroups(rows) == {"subgroups.groups": 4, "subgroups.flagged": 1}


def test_without_a_gap_nothing_is_flagged(table):
    rows = subgroups_table(table, ["side"], RESAMPLES)
    assert count_subgroups(rows) == {"subgroups.groups": 2, "subgroups.flagged": 0}
    assert all(row["p_holm"] > 0.05 for row in rows)


def test_a_group_under_thirty_is_named_without_figures(table):
    rows = subgroups_table(table, ["site"], RESAMPLES)
    (row,) = (row for row in rows if row["group"] == "unknown")
    assert (row["n"], row["suppressed"], row["flagged"]) == (1, True, False)
    assert [row[name] for name in ("metric", "value", "low", "high", "difference", "p_holm")] == [None] * 6


@pytest.mark.parametrize(("count", "suppressed"), [(29, True), (30, False)])
def test_thirty_rows_are_enough(table, count, suppressed):
    table["site"] = np.where(np.arange(160) < count, "small", "large")
    rows = subgroups_table(table, ["site"], RESAMPLES)
    assert {row["suppressed"] for row in rows if row["group"] == "small"} == {suppressed}


def test_in_a_grades_group_what_needs_several_grades_is_left_out(table):
    rows = subgroups_table(table, ["kl_grade"], RESAMPLES)
    metrics = {row["metric"] for row in rows if row["group"] == "2" and not row["suppressed"]}
    assert {name for name in metrics if name.startswith("zero_shot_kl")} == {"zero_shot_kl.accuracy"}


def test_everybody_in_one_group_is_no_group(table):
    assert subgroups_table(table.assign(side="left"), ["side"], RESAMPLES) == []


def test_a_column_that_the_csv_has_not_is_passed_over(table):
    without = table.drop(columns=["side", "kl_grade"])
    assert list(find_subgroups(without, ["side", "view", "kl_grade"])) == []
    assert count_subgroups(subgroups_table(without, ["side"], RESAMPLES)) == {}
