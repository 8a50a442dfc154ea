"""Reading a table exactly: every cell as the text that stands there, every row by the number of a spreadsheet."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from knee_siglip.core.errors import UserError

FIRST_ROW = 2
"""A spreadsheet numbers the header 1."""

ROWS_NAMED, FILES_NAMED = 5, 3

SEPARATORS = ",;\t|"
LARGEST_CELL, LARGEST_TEXT = 2**24, 2**32
"""Characters of a cell and of a whole decompressed file. A report has thousands; whatever is larger is no table."""

GZIP, PARQUET, WORKBOOKS = b"\x1f\x8b", b"PAR1", (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How compressed files, Parquet, and Excel's workbooks (new and old) begin."""

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
    """Read a UTF-8 CSV, with or without BOM, any line ends, compressed by gzip or not; or Parquet.

    Cells are separated by commas, or by semicolons, tabs or bars where the header has no comma or Excel's line `sep=;`
    stands before it. Returns text columns; the index holds spreadsheet row numbers (header = 1). Blank lines are no
    rows, but count. `007`, `NA` and `None` stay what they are.

    Raises:
        TableError: missing, empty, another format or encoding, a NUL in a cell, twice the same column, or a row with
            more or fewer cells than the header.
    """
    data = read_decompressed(path)
    return _read_parquet(path) if data.startswith(PARQUET) else parse_table(path, _text(path, data))


def parse_table(path: Path, text: str) -> pd.DataFrame:
    """A CSV's text, with a header, as `read_table` returns it; path: for messages.

    Raises:
        TableError: a NUL in a cell, twice the same column, or a row with more or fewer cells than the header.
    """
    header, *records = _records(path, text)
    if not header:
        raise TableError(f"{path}: the first row is blank; it must name the columns", row=1)
    if twice := sorted(name for name, count in Counter(header).items() if count > 1):
        reason = "; if it is a title, remove the rows above the column names" if not all(twice) else ""
        raise TableError(f"{path}: column {', '.join(map(repr, twice))} stands twice in the header{reason}", row=1)
    rows = {number: _without_extra(cells, len(header)) for number, cells in enumerate(records, FIRST_ROW) if cells}
    if ragged := {number: len(cells) for number, cells in rows.items() if len(cells) != len(header)}:
        named = ", ".join(f"row {number} has {count}" for number, count in list(ragged.items())[:ROWS_NAMED])
        more = f" and {len(ragged) - ROWS_NAMED} more rows differ" if len(ragged) > ROWS_NAMED else ""
        raise TableError(
            f"{path}: the header has {len(header)} cells, {named}{more}; a text with commas needs quotes",
            row=next(iter(ragged)),
        )
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="row"), columns=header, dtype=str)


def _without_extra(cells: list[str], count: int) -> list[str]:
    """A row without empty cells beyond the header's: some exports end each row with a separator."""
    return cells[:count] if not any(cells[count:]) else cells


def _records(path: Path, text: str) -> list[list[str]]:
    """All records, header first; a quoted cell may span lines."""
    separator = ","
    if stated := re.match(r'"?sep=([,;\t|])"?\r?\n', text):
        separator, text = stated[1], text[stated.end() :]
    else:
        first = next(csv.reader(io.StringIO(text, newline="")), [])
        if len(first) == 1:
            separator = max(SEPARATORS, key=first[0].count)
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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


def _read_parquet(path: Path) -> pd.DataFrame:
    """Whole numbers as a CSV would show them, also where gaps made them floats; a missing value is an empty cell."""
    try:
        table = pd.read_parquet(path)
    # pyarrow raises many kinds for damaged files
    except Exception as error:
        raise TableError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
    for name in table.select_dtypes("float"):
        values = table[name].dropna()
        if np.isfinite(values).all() and (values == values.round()).all():
            table[name] = table[name].astype("Int64")
    texts = table.astype(object).where(table.notna(), "").map(str).astype(str)
    return texts.set_axis(pd.RangeIndex(FIRST_ROW, FIRST_ROW + len(table), name="row"), axis=0)


def read_decompressed(path: Path) -> bytes:
    """The file's content, decompressed if it is gzip.

    Raises:
        TableError: missing, a folder, unreadable or damaged.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise TableError(f"{path} is a pipe or a device; name a file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"{path} does not exist; give --data_path, or data.csv in params.yaml") from None
    except IsADirectoryError:
        found = sorted(file.name for file in path.glob("*.csv"))[:FILES_NAMED]
        inside = f"such as {', '.join(found)} in it" if found else "it holds none"
        raise TableError(f"{path} is a folder; name a CSV file, {inside}") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    if not data.startswith(GZIP):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(LARGEST_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"{path} is damaged: it cannot be decompressed ({error})") from None
    if len(text) > LARGEST_TEXT:
        raise TableError(f"{path}: decompressed it has more than {LARGEST_TEXT / 1e9:.0f} GB, which is no table")
    return text


def _text(path: Path, data: bytes) -> str:
    if data.startswith(WORKBOOKS):
        raise TableError(f"{path} is an Excel workbook; save its sheet as CSV UTF-8, or give it to knee-siglip import")
    if encoding := next((name for mark, name in OTHER_ENCODINGS.items() if data.startswith(mark)), None):
        raise TableError(f"{path} is {encoding}; save the file as CSV UTF-8, or give it to knee-siglip import")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{path}: line {line} is not UTF-8; save the file as CSV UTF-8, or give it to knee-siglip import"
        ) from None
    if not text.strip():
        raise TableError(f"{path} is empty; it needs a header and rows")
    return text
