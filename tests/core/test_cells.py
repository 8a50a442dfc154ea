"""What others show of texts from outside: nothing runs, nothing steers, and the original can be had back."""

import pytest

from knee_siglip.core.cells import as_meant, defanged, printable

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_is_no_longer_one(cell):
    assert defanged(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["knee.png", "-0.25", "+3", "1e-5", "-inf", "", "a=b", "Mild OA."])
def test_numbers_and_texts_stay(cell):
    assert defanged(cell) == cell


@pytest.mark.parametrize("cell", [*FORMULAS, "knee.png", "-0.25", "'", "'=1", "''x", "'quoted'", ""])
def test_the_original_comes_back(cell):
    assert as_meant(defanged(cell)) == cell


def test_what_steers_a_terminal_or_turns_letters_is_escaped_and_texts_are_not():
    assert printable("a\x1b[31mb\x07\u202egnp.exe\udce9\x9b") == r"a\x1b[31mb\x07\u202egnp.exe\udce9\x9b"
    for text in (
        "Knie links, Arthrose Grad 3\tmäßig\nzweite Zeile",
        "膝 \u0627\u0644\u0631\u0643\u0628\u0629 e\u0301 🦵",
    ):
        assert printable(text) == text
