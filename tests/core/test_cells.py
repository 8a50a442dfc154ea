"""What others show of texts from outside: nothing runs, nothing steers, and the original can be had back."""

import subprocess
import sys

import pytest
from rich.table import Table

from knee_siglip.core.cells import as_meant, defanged, echo, printable
from knee_siglip.core.terminal import Terminal

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


HOSTILE = "knee\x1b]0;title\x07\u202e.png"
SHOWN = r"knee\x1b]0;title\x07\u202e.png"


def test_lines_and_tables_are_escaped_and_styles_stay(capsys):
    echo(HOSTILE)
    terminal = Terminal(width=80)
    terminal.print(HOSTILE, markup=False)
    table = Table("name", title=HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(table)
    shown = capsys.readouterr().out
    assert shown.count(SHOWN.replace("\\x07", "")) + shown.count(SHOWN) >= 3
    assert printable(shown) == shown
    styled = Terminal(width=80, force_terminal=True, color_system="standard")
    styled.print(f"[red]{HOSTILE}[/red]", highlight=False)
    assert capsys.readouterr().out.startswith("\x1b[31mknee\\x1b]0;title")


def test_whatever_is_logged_or_warned_of_is_escaped():
    script = f"""
import logging, warnings
from knee_siglip.core.running import run_stage
def main():
    logging.getLogger("knee_siglip.x").warning("%s cannot be read", {HOSTILE!r})
    logging.getLogger("pydicom").error({HOSTILE!r})
    warnings.warn({HOSTILE!r})
    logging.getLogger("x").info("unseen")
run_stage(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, third = done.stderr.splitlines()
    assert (first, second) == (f"WARNING: {SHOWN} cannot be read", f"ERROR: {SHOWN}")
    assert third.endswith(f"UserWarning: {SHOWN}")
    assert printable(done.stderr) == done.stderr
