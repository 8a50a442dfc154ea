"""What each check on the validation page looks for, and what to do about it: the rows of glossary.csv."""

import csv
from importlib.resources import files
from typing import NamedTuple

from knee_siglip.report.html.numbers import readable

NEEDS_TOKENIZER = frozenset({"truncated_text", "unknown_token", "changed_by_tokenizer"})
"""Checks that did not run if there is a `tokens_not_checked`."""


class Entry(NamedTuple):
    """pictured: the page shows the images concerned."""

    title: str
    meaning: str
    advice: str
    pictured: bool = False


def _read_glossary() -> dict[str, Entry]:
    text = files("knee_siglip.report.validation").joinpath("glossary.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))[1:]
    return {name: Entry(title, meaning, advice, pictured == "yes") for name, title, meaning, advice, pictured in rows}


GLOSSARY = _read_glossary()


def explain(check: str) -> Entry:
    """Return the check's entry; a check that is not in the glossary has only its name."""
    return GLOSSARY.get(check, Entry(readable(check).capitalize(), "", ""))
