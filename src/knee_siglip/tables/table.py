"""Reading a CSV exactly: every cell as the text that stands there, every row by the number that a spreadsheet shows."""

import codecs
import csv
import io
from collections import Counter
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UserError

FIRST_ROW = 2
"""A spreadsheet numbers the header 1."""

ROWS_NAMED = 5

OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""By the mark at a file's start, longest first: UTF-32's begins with UTF-16's."""


class TableError(UserError):
    """A CSV that cannot be read. `row`: spreadsheet number of the bad row, if one is to blame."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def read_table(path: Path) -> pd.DataFrame:
    """Read a comma-separated UTF-8 file, with or without BOM, any line ends.

    Returns text columns; the index holds spreadsheet row numbers (header = 1). Blank lines are no rows, but count.
    `007`, `NA` and `None` stay what they are.

    Raises:
        TableError: missing, empty, not UTF-8, a NUL in a cell, twice the same column, or a row with more or fewer cells
            than the header.
    """
    header, *records = _records(path)
    if not header:
        raise TableError(f"{path}: the first row is blank; it must name the columns", row=1)
    if twice := sorted(name for name, count in Counter(header).items() if count > 1):
        raise TableError(f"{path}: column {', '.join(map(repr, twice))} stands twice in the header", row=1)
    rows = {number: cells for number, cells in enumerate(records, FIRST_ROW) if cells}
    if ragged := {number: len(cells) for number, cells in rows.items() if len(cells) != len(header)}:
        named = ", ".join(f"row {number} has {count}" for number, count in list(ragged.items())[:ROWS_NAMED])
        if len(header) == 1 and (marks := [mark for mark in ";\t|" if mark in header[0]]):
            raise TableError(f"{path}: the columns are separated by {marks[0]!r}; save the file with commas", row=1)
        more = f" and {len(ragged) - ROWS_NAMED} more rows differ" if len(ragged) > ROWS_NAMED else ""
        raise TableError(
            f"{path}: the header has {len(header)} cells, {named}{more}; a text with commas needs quotes",
            row=next(iter(ragged)),
        )
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="row"), columns=header, dtype=str)


def _records(path: Path) -> list[list[str]]:
    """All records, header first; a quoted cell may span lines."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    records: list[list[str]] = []
    try:
        for number, cells in enumerate(reader, 1):
            if any("\0" in cell for cell in cells):
                reason = "holds a NUL character: the file is damaged, or UTF-16; save it as CSV UTF-8"
                raise TableError(f"{path}: row {number} {reason}", row=number)
            records.append(cells)
    except csv.Error as error:
        number = len(records) + 1
        raise TableError(f"{path}: row {number} is no valid CSV: {error}; is a quote unclosed?", row=number) from None
    return records


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"{path} does not exist; give --data_path, or data.csv in params.yaml") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    if encoding := next((name for mark, name in OTHER_ENCODINGS.items() if data.startswith(mark)), None):
        raise TableError(f"{path} is {encoding}; save the file as CSV UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(f"{path}: line {line} is not UTF-8; save the file as CSV UTF-8") from None
    if not text.strip():
        raise TableError(f"{path} is empty; it needs a header and rows")
    return text
