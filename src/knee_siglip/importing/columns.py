"""Columns and templates of columns, and what the values of our own columns become."""

import difflib
import re
from collections.abc import Mapping
from importlib.resources import files

import pandas as pd
from ruamel.yaml import YAML

from knee_siglip.core.errors import UserError
from knee_siglip.validation.rows import SPLIT_SYNONYMS
from knee_siglip.validation.texts.kellgren_lawrence import NUMERALS

OURS = ("img_path", "impression", "split", "patient_id", "study_id", "side", "view", "kl_grade")
"""The project's columns, in the order in which they are written."""

TABLE, ROW, IMAGE, REPORT = "(table)", "(row)", "(image)", "(report)"
"""Working columns: where a row stands, its image below the source's folder, and its report's text."""

WORKING = (TABLE, ROW, IMAGE, REPORT)

FIELD = re.compile(r"\{([^{}:]+)(?::(-?\d+))?\}")
"""`{column}`; `{column:2}` is its first two characters, `{column:-8}` the last eight."""

WORDS = YAML(typ="safe").load((files("knee_siglip.importing") / "words.yaml").read_text(encoding="utf-8"))
"""How others name columns and values."""

SIDES = {word: side for side, words in WORDS["sides"].items() for word in words}
VIEWS = {word: view for view, words in WORDS["views"].items() for word in words}

GRADE = re.compile(
    r"(?:kl|kellgren|grade|grad|class|stage|g)?[ _.-]*(?:grade|grad|g)?[ _.-]*([0-4]|i{1,3}|iv)(?:\.0+)?"
)


def column(table: pd.DataFrame, name: str, where: str) -> pd.Series:
    """A column by its name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name in table.columns:
        return table[name]
    there = [str(other) for other in table.columns if other not in WORKING]
    near = difflib.get_close_matches(name.casefold(), {other.casefold(): other for other in there}, n=1, cutoff=0.6)
    hint = f"; did you mean {next(o for o in there if o.casefold() == near[0])!r}?" if near else ""
    listed = ", ".join(there[:40]) + (" ..." if len(there) > 40 else "")
    raise UserError(f"{where}: there is no column {name!r}; the columns are {listed}{hint}")


def fill(table: pd.DataFrame, template: str, where: str) -> pd.Series:
    """A column by its name, or what a template of columns such as `{patient}/{study}` gives; blanks at the ends go."""
    return fill_template(table, template, where) if "{" in template else column(table, template, where).str.strip()


def fill_template(table: pd.DataFrame, template: str, where: str) -> pd.Series:
    """What a template gives in each row; without a column it is one text."""
    filled, position = pd.Series("", table.index, dtype=object), 0
    for match in FIELD.finditer(template):
        cells = column(table, match[1], where).str.strip()
        if match[2]:
            cells = cells.str[int(match[2]) :] if match[2].startswith("-") else cells.str[: int(match[2])]
        filled = filled + template[position : match.start()] + cells
        position = match.end()
    return (filled + template[position:]).str.strip()


def fields(template: str) -> list[str]:
    """Names of the columns that a template, or a column's name, asks for."""
    return [match[1] for match in FIELD.finditer(template)] if "{" in template else [template]


def mapped(cells: pd.Series, values: Mapping[str, str]) -> pd.Series:
    """Cells by a map of values, whatever their case; others stay."""
    known = {key.casefold(): value for key, value in values.items()}
    return cells.map({cell: known.get(" ".join(cell.casefold().split()), cell) for cell in cells.unique()})


def our_value(name: str, cell: str) -> str:
    """A cell of one of our columns as the project writes it; a text that is unknown there stays as it is.

    side: left, right, both. split: train, val, test. view: in lower case, without dots. kl_grade: 0-4, '' for what is
    none.
    """
    key = " ".join(cell.casefold().split())
    if name == "side":
        return SIDES.get(key.rstrip("."), cell.strip())
    if name == "split":
        return SPLIT_SYNONYMS.get(key, cell.strip())
    if name == "view":
        return VIEWS.get(key.replace(".", ""), key.replace(".", ""))
    if name == "kl_grade":
        return grade_of(key)
    return cell.strip()


def grade_of(text: str) -> str:
    """The Kellgren-Lawrence grade that a short text is: `3.0`, `KL 3`, `grade iii`; '' where it is none."""
    match = GRADE.fullmatch(text.casefold().strip())
    return str(NUMERALS[match[1]]) if match else ""
