"""Splitting: patients whole, composition alike, the same for a seed whatever the order of the rows."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest

from knee_siglip.cli.split.assignment import Shares, split_table
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.tables.manifest import SPLITS

split = partial(split_table, stratify=["kl_grade"])
MakeTable = Callable[..., pd.DataFrame]


@pytest.fixture
def make_table() -> MakeTable:
    """Patients of one to `most` images each, with a grade, a side and one of a few texts."""

    def make(patients: int = 200, most: int = 3, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        person = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
        count = len(person)
        grades = rng.choice(["0", "1", "2", "3", "4", ""], count, p=[0.3, 0.2, 0.2, 0.15, 0.05, 0.1])
        return pd.DataFrame(
            {
                "img_path": [f"images/P{number:04d}_{row}.png" for row, number in enumerate(person)],
                "impression": [f"Text number {number}." for number in rng.integers(0, 12, count)],
                "patient_id": [f"P{number:04d}" for number in person],
                "side": rng.choice(["left", "right"], count),
                "kl_grade": grades,
            },
            index=pd.RangeIndex(2, count + 2, name="row"),
        )

    return make


def _spread(table: pd.DataFrame, column: str) -> float:
    """Largest difference between two splits in the share of a value."""
    shares = pd.crosstab(table["split"], table[column], normalize="index")
    return float((shares.max() - shares.min()).max())


def test_no_patient_is_in_two_splits_and_no_split_is_empty(make_table: MakeTable) -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        table = make_table(patients=int(rng.integers(3, 60)), most=int(rng.integers(1, 12)), seed=seed)
        done, _ = split(table, seed=seed)
        assert done.drop(columns="split").equals(table)
        assert done.groupby("patient_id")["split"].nunique().max() == 1
        assert set(done["split"]) == set(SPLITS)


def test_grades_sides_and_texts_are_alike_in_all_splits(make_table: MakeTable) -> None:
    table = make_table(patients=600)
    done, warnings = split(table)
    assert warnings == []
    assert _spread(done, "kl_grade") < 0.01
    assert _spread(done, "side") < 0.02
    assert _spread(done, "impression") < 0.025
    worst = done.groupby("patient_id").agg(kl_grade=("kl_grade", "max"), split=("split", "first"))
    assert _spread(worst, "kl_grade") < 0.02
    blind, _ = split(table, stratify=())
    assert _spread(blind, "kl_grade") > 0.02


def test_any_column_can_be_kept_alike(make_table: MakeTable) -> None:
    table = make_table(patients=600)
    table["hospital"] = np.random.default_rng(1).choice(["a", "b", "c"], len(table))
    assert _spread(split(table, stratify=["hospital"])[0], "hospital") < 0.01
    assert _spread(split(table)[0], "hospital") > 0.02


def test_shares_are_kept(make_table: MakeTable) -> None:
    for val, test in ((0.15, 0.15), (0.1, 0.3), (0.3, 0.6)):
        shares = split(make_table(), Shares(val, test))[0]["split"].value_counts(normalize=True)
        assert shares["val"] == pytest.approx(val, abs=0.01)
        assert shares["test"] == pytest.approx(test, abs=0.01)


@pytest.mark.parametrize("count", [7, 10, 13, 20, 99])
def test_rows_of_single_images_are_rounded_by_less_than_one(count: int) -> None:
    table = pd.DataFrame({"img_path": [f"{row}.png" for row in range(count)], "patient_id": map(str, range(count))})
    got = split(table, Shares(0.2, 0.2))[0]["split"].value_counts()
    wanted = {"train": 0.6 * count, "val": 0.2 * count, "test": 0.2 * count}
    assert all(abs(got[split] - wanted[split]) < 1 for split in SPLITS)


def test_the_order_of_the_rows_has_no_influence(make_table: MakeTable) -> None:
    table = make_table()
    done = split(table, seed=5)[0]["split"]
    for seed in range(3):
        shuffled = table.sample(frac=1, random_state=seed)
        assert split(shuffled, seed=5)[0]["split"].reindex(done.index).equals(done)


def test_a_seed_gives_its_own_split(make_table: MakeTable) -> None:
    table = make_table()
    first, again, other = (split(table, seed=seed)[0]["split"] for seed in (0, 0, 1))
    assert first.equals(again)
    assert 0.3 < (first == other).mean() < 0.8


def test_spellings_of_one_patient_stay_together(make_table: MakeTable) -> None:
    table = make_table(patients=100, most=2)
    spelt = table.assign(patient_id=[f" p{number[1:].lstrip('0') or '0'}" for number in table["patient_id"]])
    spelt["img_path"] = "other_" + spelt["img_path"]
    both = pd.concat([table, spelt.set_index(table.index + 1000)])
    done, _ = split(both)
    assert done.groupby(both["patient_id"].str.lower().str.strip().str[1:].astype(int))["split"].nunique().max() == 1


def test_patients_who_share_an_image_stay_together(make_table: MakeTable) -> None:
    table = make_table(patients=60, most=1)
    image_ids = pd.Series([f"sha-{row // 2}" for row in range(60)], table.index)
    done, warnings = split(table, links=[image_ids])
    assert done.groupby(image_ids)["split"].nunique().max() == 1
    assert len(warnings) == 1
    assert warnings[0].startswith("60 patients share an image with another patient")
    unread = pd.Series("", table.index)
    assert split(table, links=[unread])[1] == []


def test_a_chain_of_shared_images_is_one_group(make_table: MakeTable) -> None:
    table = make_table(patients=30, most=1)
    first = pd.Series([f"a{row // 2}" if row < 6 else "" for row in range(30)], table.index)
    second = pd.Series([f"b{(row + 1) // 2}" if row < 6 else "" for row in range(30)], table.index)
    for seed in range(10):
        assert split(table, seed=seed, links=[first, second])[0]["split"].iloc[:6].nunique() == 1


def test_the_same_file_in_two_rows_is_one_group() -> None:
    names = [f"{row // 2}.png" for row in range(40)]
    table = pd.DataFrame({"img_path": names, "patient_id": ""})
    assert split(table)[0].groupby("img_path")["split"].nunique().max() == 1


def test_a_study_stays_together() -> None:
    table = pd.DataFrame({"img_path": [f"{row}.png" for row in range(40)], "patient_id": ""})
    table["study_id"] = [f"S{row // 2}" if row % 2 else f"s0{row // 2} " for row in range(40)]
    done, _ = split(table)
    assert done["split"].groupby(np.arange(40) // 2).nunique().max() == 1


def test_the_pattern_finds_patients_in_the_paths(make_table: MakeTable) -> None:
    table = make_table()
    patients = table["patient_id"]
    bare = table.drop(columns="patient_id")
    done, warnings = split(bare, pattern=r"/(P\d+)_")
    assert warnings == []
    assert done.groupby(patients)["split"].nunique().max() == 1
    done, warnings = split(bare)
    assert len(warnings) == 1
    assert "--patient_id_pattern" in warnings[0]
    assert done.groupby(patients)["split"].nunique().max() > 1


def test_bad_pattern_is_refused(make_table: MakeTable) -> None:
    with pytest.raises(UsageError, match="has no group"):
        split(make_table(), pattern="P")


def test_a_patient_of_very_many_images_is_kept_whole_and_named() -> None:
    patients = ["big"] * 60 + [f"P{number}" for number in range(40)]
    table = pd.DataFrame({"img_path": [f"{row}.png" for row in range(100)], "patient_id": patients})
    done, warnings = split(table, Shares(0.25, 0.25))
    assert (done["split"].iloc[:60] == "train").all()
    assert set(done["split"]) == set(SPLITS)
    assert any(said.startswith("train holds 60% of the rows instead of 50%") for said in warnings)


def test_fewer_patients_than_splits_are_refused() -> None:
    table = pd.DataFrame({"img_path": ["a.png", "b.png", "c.png"], "patient_id": ["1", "2", "2"]})
    with pytest.raises(UserError, match="2 independent groups of patients cannot make 3 splits"):
        split(table)


def test_three_patients_fill_three_splits() -> None:
    table = pd.DataFrame({"img_path": ["a.png", "b.png", "c.png"], "patient_id": ["1", "2", "3"]})
    for seed in range(5):
        assert sorted(split(table, seed=seed)[0]["split"]) == sorted(SPLITS)


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.15), (0.15, 0.0), (0.5, 0.5), (0.9, 0.4), (-0.1, 0.2), (1.5, 0.1)])
def test_impossible_shares_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="train gets the rest"):
        Shares(val, test)
