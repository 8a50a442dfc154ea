"""Texts with their sentences in another order, or without some: what is said of sides and absences stays."""

import numpy as np
import pytest
import torch

from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.pairs.sentences import VERSIONS, TextVersions, rewrite, sentences, text_versions

PLAIN = "Severe OA. Osteophytes. Subchondral sclerosis."


def versions(text: str, shuffle: float = 1.0, drop: float = 0.5, count: int = 200) -> set[str]:
    rng = np.random.default_rng(0)
    return {rewrite(text, shuffle, drop, rng) for _ in range(count)}


def test_all_orders_and_all_parts_of_a_plain_text_are_drawn() -> None:
    assert len(versions(PLAIN, drop=0.0)) == 6
    assert versions(PLAIN, shuffle=0.0) == {
        *("Severe OA.", "Osteophytes.", "Subchondral sclerosis.", "Severe OA. Osteophytes."),
        *("Severe OA. Subchondral sclerosis.", "Osteophytes. Subchondral sclerosis.", PLAIN),
    }
    assert versions(PLAIN, shuffle=0.0, drop=0.0) == {PLAIN}
    assert len(versions(PLAIN, shuffle=0.5, drop=0.0)) == 6


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("Severe OA. No fracture. Osteophytes.", "No fracture."),
        ("OA. Fracture is not seen. Cysts.", "Fracture is not seen."),
        ("OA. There isn't any effusion. Cysts.", "There isn't any effusion."),
        ("Artrosis leve. Sin derrame. Osteofitos.", "Sin derrame."),
        ("Gonarthrose. Kein Erguss. Osteophyten.", "Kein Erguss."),
        ("Sclerosis. Effusion of the left knee. Cysts.", "Effusion of the left knee."),
        ("Sclerosis. Rechtes Knie mit Erguss. Cysts.", "Rechtes Knie mit Erguss."),
        ("Sclerosis. Bilateral effusion. Cysts.", "Bilateral effusion."),
    ],
)
def test_a_sentence_with_a_side_or_a_negation_is_never_left_out_or_changed(text: str, stays: str) -> None:
    drawn = versions(text)
    assert len(drawn) > 3
    assert all(stays in sentences(version) for version in drawn)


@pytest.mark.parametrize(
    "text",
    [
        "Right knee: OA. Effusion. Left knee: normal joint.",
        "Rechts Gonarthrose. Erguss. Links unauffällig.",
        "Left knee OA. Effusion. Other side with cysts.",
        "Severe OA. Otherwise normal.",
        "Loose body. It lies behind the joint. Cysts.",
    ],
)
def test_sentences_whose_side_or_meaning_comes_from_another_keep_their_order(text: str) -> None:
    drawn = versions(text, drop=0.0)
    assert drawn == {text}


def test_what_another_sentence_refers_to_is_not_left_out() -> None:
    assert versions("Loose body. It lies behind the joint.") == {"Loose body. It lies behind the joint."}


def test_numbered_and_broken_lines_are_sentences_and_abbreviations_are_none() -> None:
    assert sentences("1. Effusion. 2. Cysts.") == ["1. Effusion.", "2. Cysts."]
    assert sentences("Effusion\n\nCysts; 1.5 mm spur") == ["Effusion", "Cysts;", "1.5 mm spur"]


def test_texts_of_one_sentence_or_without_a_version_have_none() -> None:
    texts, places = text_versions(["Severe OA.", PLAIN, "No effusion. Left knee.", "", "OA. Cysts."], 1.0, 0.0, seed=0)
    assert places.tolist() == [-1, 0, 1, -1, 2]
    assert len(texts) == 3 * VERSIONS
    assert text_versions([PLAIN], 0.0, 0.0, seed=0) == ([], torch.tensor([-1]))
    assert text_versions([PLAIN], 1.0, 0.5, seed=0)[0] == text_versions([PLAIN], 1.0, 0.5, seed=0)[0]


def test_the_same_key_picks_the_same_version_whatever_is_beside_it() -> None:
    table = torch.arange(2 * VERSIONS * 3).view(2, VERSIONS, 3) + 100
    drawn = TextVersions(table, torch.tensor([-1, 0, 1]))
    ids, distinct = torch.zeros(3, 3, dtype=torch.int64), torch.tensor([0, 1, 2])
    keys = sample_keys(0, 1, distinct)
    picked = drawn.pick(ids, distinct, keys)
    assert picked[0].tolist() == [0, 0, 0]
    assert picked[1].tolist() in table[0].tolist()
    assert picked[2].tolist() in table[1].tolist()
    assert torch.equal(drawn.pick(ids[1:2], distinct[1:2], keys[1:2]), picked[1:2])
    steps = {tuple(drawn.pick(ids, distinct, sample_keys(step, 1, distinct))[1].tolist()) for step in range(99)}
    assert len(steps) == VERSIONS
