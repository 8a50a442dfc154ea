"""The texts of the default sample, without drawing a picture."""

import json

import numpy as np
import pandas as pd
import pytest

from knee_siglip.params.sections import SampleParams
from knee_siglip.sample.dataset import label_table
from knee_siglip.sample.findings import Labels
from knee_siglip.sample.impression import draw_text, text_alternatives


@pytest.fixture(scope="module", params=[42, 7])
def table(request: pytest.FixtureRequest) -> pd.DataFrame:
    return label_table(patients=SampleParams().patients, seed=request.param)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            Labels("right", 4, "medial", "varus", True, None),
            "Severe OA of medial compartment of right knee joint with varus angulation and joint effusion.",
        ),
        (Labels("left", 0, None, "normal", False, None), "Normal left knee joint."),
        (
            Labels("left", 0, None, "valgus", True, None),
            "Valgus angulation of left knee joint with joint effusion without OA.",
        ),
        (Labels("left", 1, "medial", "normal", False, None), "Doubtful OA of left knee joint."),
        (
            Labels("right", 2, "medial", "normal", True, "fracture", "lateral"),
            "Fracture of lateral tibial plateau of right knee joint "
            "with mild OA of medial compartment and joint effusion.",
        ),
        (Labels("right", None, None, "normal", False, "arthroplasty"), "Total knee arthroplasty of right knee joint."),
    ],
)
def test_impression_says_what_matters(labels: Labels, text: str) -> None:
    assert next(iter(text_alternatives(labels))) == text


def test_alternatives_are_a_distribution_and_hold_the_text(table: pd.DataFrame) -> None:
    for text, alternatives in zip(table["impression"], map(json.loads, table["text_alternatives"]), strict=True):
        assert text in alternatives
        assert sum(alternatives.values()) == pytest.approx(1.0)
        assert all(word in text for word in ("knee joint", "left" if "left" in text else "right"))


def test_every_text_names_its_side(table: pd.DataFrame) -> None:
    assert all(f" {side} knee joint" in text for side, text in zip(table["side"], table["impression"], strict=True))


def test_test_split_has_at_least_80_distinct_texts(table: pd.DataFrame) -> None:
    test = table.loc[table["split"] == "test", "impression"]
    assert len(test) >= 300
    assert test.nunique() >= 80


def test_no_text_takes_more_than_4_percent_of_the_studies_of_a_split(table: pd.DataFrame) -> None:
    for _, rows in table.drop_duplicates("study_id").groupby("split"):
        assert rows["impression"].value_counts(normalize=True).iloc[0] <= 0.04


def test_a_perfect_reader_finds_the_very_text_in_9_of_10_cases(table: pd.DataFrame) -> None:
    test = table[table["split"] == "test"]
    pool = sorted(set(test["impression"]))
    guesses = [max(pool, key=lambda text: a.get(text, 0.0)) for a in map(json.loads, test["text_alternatives"])]
    assert np.mean(np.array(guesses) == test["impression"].to_numpy()) >= 0.92


def test_drawn_texts_follow_their_probabilities() -> None:
    alternatives = {"a": 0.8, "b": 0.2}
    rng = np.random.default_rng(0)
    drawn = [draw_text(rng, alternatives) for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.8, abs=0.03)
