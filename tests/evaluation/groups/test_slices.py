"""Where mistakes gather: planted ones are found with their filters, chance is not, and small slices are left alone."""

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.groups.slices import count_slices, slices_table


@pytest.fixture
def table():
    """400 knees of 200 patients, one of ten wrong; an effusion in a third, two sites, a device of each patient."""
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 3, 400)
    wrong = rng.random(400) < 0.1
    columns = {
        "image_id": [f"{row:064x}" for row in range(400)],
        "patient_id": [f"P{row // 2}" for row in range(400)],
        "text": [f"text {row}" for row in range(400)],
        "kl_grade": pd.array(grades, dtype="Int64"),
        "kl_grade_predicted": np.where(wrong, (grades + 1) % 3, grades),
        "site": np.where(rng.random(400) < 0.5, "north & south", "west"),
        "device": [f"device {row // 2}" for row in range(400)],
        "finding_effusion_truth": rng.random(400) < 0.35,
    }
    probabilities = {f"kl_probability_{grade}": np.full(400, 1 / 3) for grade in range(3)}
    return pd.DataFrame(columns | probabilities)


def plant(table, rows, share):
    chosen = rows & (np.random.default_rng(1).random(400) < share)
    table.loc[chosen, "kl_grade_predicted"] = (table["kl_grade"][chosen] + 1) % 3


def test_planted_mistakes_are_the_worst_slice_and_lead_to_the_browser(table):
    rows = (table["finding_effusion_truth"] & (table["site"] == "north & south")).to_numpy()
    plant(table, rows, 0.6)
    found = slices_table(table)
    (worst,) = (row for row in found if row["worst"] == 1)
    assert worst["filters"] == "finding=effusion&in.site=north+%26+south"
    assert worst["n"] == rows.sum()
    wrong = (table["kl_grade"] != table["kl_grade_predicted"]).to_numpy()
    assert (worst["mistakes"], worst["risk"]) == (wrong[rows].sum(), pytest.approx(wrong[rows].mean()))
    assert worst["risk_outside"] == pytest.approx(wrong[~rows].mean())
    assert worst["low"] < worst["risk"] < worst["high"]
    assert worst["p_holm"] < 0.001
    assert all("finding=effusion&in.site=north" not in row["filters"] for row in found if row["worst"] in (2, 3))


def test_slices_that_hold_one_another_are_shown_once(table):
    plant(table, table["finding_effusion_truth"].to_numpy(), 0.7)
    worst = [row["filters"] for row in slices_table(table) if row["worst"] is not None]
    assert worst[0] == "finding=effusion"
    assert all("finding" not in filters for filters in worst[1:])


def test_mistakes_by_chance_flag_nothing(table):
    flagged = 0
    for seed in range(20):
        wrong = np.random.default_rng(seed).random(200).repeat(2) < 0.1  # both knees of a patient
        table["kl_grade_predicted"] = np.where(wrong, (table["kl_grade"] + 1) % 3, table["kl_grade"])
        flagged += any(row["flagged"] for row in slices_table(table))
    assert flagged <= 3  # one in twenty is allowed


def test_what_would_have_been_found_is_found(table):
    table["kl_grade_predicted"] = table["kl_grade"]
    calm = np.random.default_rng(2).random(400) < 0.1
    table.loc[calm, "kl_grade_predicted"] = (table["kl_grade"][calm] + 1) % 3
    row = next(row for row in slices_table(table) if row["filters"] == "finding=effusion")
    assert not row["flagged"]
    plant(table, table["finding_effusion_truth"].to_numpy(), row["detectable"] + 0.05)
    assert next(row for row in slices_table(table) if row["filters"] == "finding=effusion")["flagged"]


def test_small_slices_and_columns_of_many_values_are_left_alone(table):
    table["site"] = np.where(np.arange(400) < 29, "small", "large")
    table["clinic"] = np.where(np.arange(400) < 40, "nine patients", "other")
    table.loc[:39, "patient_id"] = [f"P{row % 9}" for row in range(40)]
    filters = {row["filters"] for row in slices_table(table)}
    assert not any("device" in each or "small" in each or "nine" in each for each in filters)
    assert {"actual=0", "finding=effusion"} <= filters
    assert count_slices([]) == {}


def test_without_grades_mistakes_are_texts_that_were_not_found(table):
    table = table.drop(columns=[name for name in table if name.startswith("kl_")])
    table["image_to_text_recall_at_1"] = np.where(table["site"] == "west", 0.2, 1.0)
    worst = next(row for row in slices_table(table) if row["worst"] == 1)
    assert (worst["filters"], worst["risk"], worst["risk_outside"]) == ("in.site=west", 1.0, 0.0)
    assert count_slices(slices_table(table))["slices.flagged"] >= 1
