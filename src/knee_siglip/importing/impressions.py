"""The impression of each row: taken from a text or a report, or composed from labels by a template."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing.columns import FIELD, IMAGE, REPORT, ROW, TABLE, column, fill, fill_template
from knee_siglip.importing.files import Files
from knee_siglip.importing.joining import common_id
from knee_siglip.importing.layout import Labels, Texts
from knee_siglip.importing.outcome import Outcome
from knee_siglip.importing.paths import image_names
from knee_siglip.tables.sections import impression_of, sections_of

TEXT_FILES = (".txt", ".text", ".md")
LEAST_LABELS = 0.5
"""Share of a layout's labels that a table must have: of another set's table the rest would read as healthy."""

HEADINGS_IN = 0.05
"""Share of a column's texts with headings from which it holds whole reports, of which the impression is taken."""


def report_key(rows: pd.DataFrame, folder: Files) -> str | None:
    """The column of the rows, or part of their images' paths, by which most reports are named; None: there are none."""
    stems = [path.stem for path in map(PurePosixPath, folder.names) if path.suffix.lower() in TEXT_FILES]
    named = rows.drop(columns=[name for name in rows.columns if name.startswith("(") and name != IMAGE])
    found = common_id(named.join(image_names(rows)), pd.DataFrame({"report": stems, TABLE: "", ROW: ""}, dtype=object))
    return found[0] if found else None


def read_texts(rows: pd.DataFrame, template: str, folder: Files, outcome: Outcome) -> pd.DataFrame:
    """The rows with the text of each one's report, a file below the folder, and its path as the column `report_file`.

    template: name of the file, without its suffix.

    Raises:
        UserError: a report is no UTF-8.
    """
    by_name: dict[str, list[str]] = {}
    for name in folder.names:
        path = PurePosixPath(name)
        if path.suffix.lower() in TEXT_FILES:
            by_name.setdefault(path.stem.casefold(), []).append(name)
    wanted = fill(rows, template, "the name of the reports").str.casefold()
    found = {name: files[0] for name in wanted.unique() if len(files := by_name.get(name, [])) == 1}
    texts = {name: _read_text(folder.root / file) for name, file in found.items()}
    outcome.read(f"reports named by {template}", len(texts))
    return rows.assign(**{REPORT: wanted.map(texts).fillna(""), "report_file": wanted.map(found).fillna("")})


def take(rows: pd.DataFrame, columns: Sequence[str], outcome: Outcome) -> pd.Series:
    """The impression from the first of the columns that is not empty; of whole reports their impression.

    Raises:
        UserError: a column is missing.
    """
    texts, taken = pd.Series("", rows.index, dtype=object), pd.Series("", rows.index, dtype=object)
    for name in columns:
        cells = column(rows, name, "impression").str.strip()
        kinds = _taken(cells)
        empty = (texts == "") & (cells != "")
        shown = "report" if name == REPORT else name
        texts = texts.mask(empty, cells.map({cell: text for cell, (text, _) in kinds.items()}))
        source = cells.map({cell: f"{shown}: {kind}" for cell, (_, kind) in kinds.items()})
        taken = taken.mask(empty & (texts != ""), source)
    outcome.impressions |= Counter(taken[taken != ""])
    return texts


def compose_labels(rows: pd.DataFrame, labels: Labels, outcome: Outcome) -> pd.Series:
    """`Cardiomegaly, pleural effusion. Possible edema.`; the normal text where nothing is, '' where all is blank.

    Raises:
        UserError: the column, or most of the columns, are missing.
    """
    if labels.column:
        cells = column(rows, labels.column, "labels").str.strip()
        found = [[name.strip() for name in cell.split(labels.separator) if name.strip()] for cell in cells]
        texts = [_sentences(names, [], labels) for names in found]
    else:
        names = [name for name in labels.columns if name in rows.columns]
        if len(names) < LEAST_LABELS * len(labels.columns):
            missing = ", ".join(name for name in labels.columns if name not in names)
            raise UserError(
                f"{outcome.source}: of the {len(labels.columns)} labels of the layout {outcome.layout} only "
                f"{len(names)} are columns, so it is another set's table; missing are {missing}; describe it by a "
                "--layout of its own (docs/import.md)"
            )
        records = rows[names].map(str.strip).itertuples(index=False, name=None)
        texts = [_by_columns(names, cells, labels) for cells in records]
    composed = pd.Series(texts, rows.index, dtype=object)
    outcome.impressions |= {"composed from labels": int((composed != "").sum())}
    outcome.note(
        "The impressions were composed from labels, as '<finding>, <finding>. Possible <uncertain finding>.' or "
        f"'{labels.normal}': the source has no reports, and a model learns no more from them than the labels say."
    )
    return composed


def compose_texts(rows: pd.DataFrame, texts: Texts, outcome: Outcome) -> pd.Series:
    """The sentence for each row's value; '' for a value without one.

    Raises:
        UserError: a column is missing.
    """
    cells = column(rows, texts.column, "texts").str.strip()
    composed = pd.Series("", rows.index, dtype=object)
    for value, template in texts.texts.items():
        chosen = cells == value
        if chosen.any():
            needed = {match[1] for match in FIELD.finditer(template)}
            part = rows.loc[chosen].assign(**dict.fromkeys(needed - set(rows.columns), ""))
            part = part.assign(**{name: part[name].str.replace("_", " ").str.lower() for name in needed})
            composed[chosen] = fill_template(part, template, "texts").map(_tidy)
    outcome.impressions |= {f"composed from {texts.column}": int((composed != "").sum())}
    examples = ", ".join(f"{value}: '{text}'" for value, text in list(texts.texts.items())[:5])
    outcome.note(
        f"The impressions were composed from {texts.column} ({examples}): the source has no reports, and a model "
        "learns no more from them than that column says."
    )
    return composed


def take_impression(report: str) -> tuple[str, str]:
    """The impression of a report on one line, and what was taken.

    A text without headings is taken whole. A report without an impression gives its findings; one without either its
    last paragraph, if that has no heading: the order of MIMIC-CXR's own tools (Johnson et al. 2019,
    doi:10.1038/s41597-019-0322-0).
    """
    sections = sections_of(report)
    if not sections:
        return " ".join(report.split()), "whole text"
    if said := impression_of(report):
        return said, "impression"
    if findings := " ".join(section.text for section in sections if section.kind == "findings" and section.text):
        return findings, "findings"
    paragraphs = [part for part in re.split(r"\n\s*\n", report) if part.strip()]
    return ("" if sections_of(paragraphs[-1]) else " ".join(paragraphs[-1].split())), "last paragraph"


def _taken(cells: pd.Series) -> dict[str, tuple[str, str]]:
    """Each distinct text to what is taken of it; whole texts where few have headings, for words may look like one."""
    distinct = [cell for cell in cells.unique() if cell]
    if sum(bool(sections_of(cell)) for cell in distinct) <= HEADINGS_IN * len(distinct):
        return {cell: (" ".join(cell.split()), "whole text") for cell in distinct}
    return {cell: take_impression(cell) for cell in distinct}


def _by_columns(names: Sequence[str], cells: Sequence[str], labels: Labels) -> str:
    found = [name for name, cell in zip(names, cells, strict=True) if cell in labels.positive]
    possible = [name for name, cell in zip(names, cells, strict=True) if cell in labels.uncertain]
    if not found and not possible and not any(cells):
        return ""
    return _sentences(found, possible, labels)


def _sentences(found: Sequence[str], possible: Sequence[str], labels: Labels) -> str:
    found, possible = ([_words(name) for name in names if name not in labels.none] for names in (found, possible))
    said = [_sentence(", ".join(found))] if found else []
    said += [_sentence(f"possible {', '.join(possible)}")] if possible else []
    return " ".join(said) or labels.normal


def _words(label: str) -> str:
    """`Pleural_Thickening` to `pleural thickening`; abbreviations stay."""
    words = label.replace("_", " ").split()
    return " ".join(word if word.isupper() else word.lower() for word in words)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _tidy(text: str) -> str:
    """A template without one of its values: no double blanks, none before a comma."""
    text = re.sub(r"\bthe both (\w+)", r"both \1s", " ".join(text.split()))
    return _sentence(re.sub(r" +([.,])", r"\1", text).rstrip(".")) if text else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return path.read_text(encoding="cp1252", errors="replace")
    except OSError as error:
        raise UserError(f"the report {path} cannot be read: {error.strerror}") from None
