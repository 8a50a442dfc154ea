"""Tables as people have them: any separator and encoding, gzip, Parquet, Excel, coded cells, readings side by side."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing.columns import ROW, TABLE
from knee_siglip.importing.files import Files
from knee_siglip.importing.layout import TableLayout
from knee_siglip.tables.table import (
    FIRST_ROW,
    OTHER_ENCODINGS,
    PARQUET,
    WORKBOOKS,
    TableError,
    parse_table,
    read_decompressed,
    read_table,
)

if TYPE_CHECKING:
    from knee_siglip.importing.outcome import Outcome

CODED = re.compile(r"(-?\d+(?:\.\d+)?|\.[A-Z]?): .*", re.DOTALL)
LOOKED_AT, HEADER_FILLED = 30, 0.5
"""A sheet's header is the first of so many rows that fills more than this share of the cells that the widest fills:
titles above it fill one or two."""

FALLBACK = "cp1252"
"""Western Europe's code page, which spreadsheets on Windows write."""


def read_any(path: Path, outcome: "Outcome", encoding: str | None = None, sheet: str | None = None) -> pd.DataFrame:
    """Text columns, and `TABLE` and `ROW`: where each row stands.

    Raises:
        UserError: the file cannot be read as a table, or not in that encoding.
    """
    data = read_decompressed(path)
    if data.startswith(WORKBOOKS[1]):
        raise TableError(f"{path} is an old Excel workbook, or one with a password; save it as .xlsx without one")
    if data.startswith(WORKBOOKS):
        table = _read_workbook(path, sheet)
    elif data.startswith(PARQUET):
        table = read_table(path)
    else:
        table = parse_table(path, _decode(path, data, outcome, encoding))
    blank = [name for name in table.columns if not name.strip()]
    table = table.drop(columns=[name for name in blank if not table[name].str.strip().any()])
    table = table.rename(columns=dict.fromkeys(blank, "row"))  # pandas' nameless index
    table[TABLE], table[ROW] = f"{path.name}, {sheet}" if sheet else path.name, table.index.astype(str)
    return table


def sheets_of(path: Path) -> list[str]:
    """The sheets with rows of a workbook that has several; none for others, and for what cannot be read."""
    try:
        filled = {name: table for name, table in _read_book(path).items() if len(table) > 1}
    except UserError:
        return []
    return list(filled) if len(filled) > 1 else []


def read_tables(
    layout: TableLayout, files: Files, outcome: "Outcome", encoding: str | None = None
) -> pd.DataFrame | None:
    """All tables of one kind, one below the other; None if there is none of them."""
    names = sorted({name for pattern in layout.files for name in files.matching(pattern)})
    if not names:
        return None
    if layout.reader == "openi":
        from knee_siglip.importing.openi import read_reports

        table = read_reports(files.root, names)
        outcome.read("XML reports", len(names))
    else:
        parts = []
        for name in names:
            part = read_any(files.root / name, outcome, encoding)
            outcome.read(name, len(part))
            parts.append(melt(part, layout.melt) if layout.melt else part)
        table = pd.concat(parts, ignore_index=True).fillna("")
    if layout.coded:
        table = table.map(decode_cell)
    return table.assign(**layout.set)


def melt(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Columns that hold several readings of a row, such as `V00XRKL` and `V01XRKL`, to a row for each reading.

    pattern: its group `name` names the value's column, every other group is a column of its own. A reading without any
    value is none.

    Raises:
        UserError: no column fits the pattern.
    """
    readings: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for name in table.columns:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            value = groups.pop("name")
            readings.setdefault(tuple(groups.items()), {})[name] = value
    if not readings:
        raise UserError(f"{table[TABLE].iloc[0]}: no column is named like {pattern}")
    base = table.drop(columns=[name for columns in readings.values() for name in columns])
    parts = []
    for reading, columns in readings.items():
        values = table[list(columns)].rename(columns=columns)
        part = base.join(values).assign(**dict(reading))
        parts.append(part[(values != "").any(axis=1)])
    return pd.concat(parts, ignore_index=True).fillna("")


def decode_cell(cell: str) -> str:
    """`1: Right` is 1, and `.: Missing Form` nothing: SAS' formats in the OAI's text files."""
    code = match[1] if (match := CODED.fullmatch(cell)) else cell
    return "" if re.fullmatch(r"\.[A-Z]?", code) else code


def read_list(path: Path) -> list[str]:
    """Names of images, one a line.

    Raises:
        UserError: the file cannot be read as UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of images: {error}") from None


def _decode(path: Path, data: bytes, outcome: "Outcome", encoding: str | None) -> str:
    marked = next((name for mark, name in OTHER_ENCODINGS.items() if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8-sig"
    try:
        text = data.decode(chosen)
    except LookupError:
        raise UserError(
            f"--encoding {encoding} is unknown; utf-8, cp1252, cp1251, gb18030 and utf-16 are some"
        ) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if encoding or marked:
            raise TableError(f"{path}: line {line} is not {chosen}; give another --encoding") from None
        text = data.decode(FALLBACK, errors="replace")
        outcome.note(
            f"{path.name} is not UTF-8 (line {line}) and was read as {FALLBACK}; look at its accents, and give "
            "--encoding if they are wrong"
        )
    if not text.strip():
        raise TableError(f"{path} is empty; it needs a header and rows")
    return text


def _read_book(path: Path) -> dict[str, pd.DataFrame]:
    try:
        return pd.read_excel(path, sheet_name=None, header=None, dtype=str, keep_default_na=False, na_filter=False)
    except Exception as error:  # openpyxl raises many kinds for damaged files
        raise UserError(f"{path} is no readable workbook: {str(error).splitlines()[0]}") from None


def _read_workbook(path: Path, sheet: str | None) -> pd.DataFrame:
    book = _read_book(path)
    filled = {name: table for name, table in book.items() if len(table) > 1}
    if sheet is not None and sheet not in book:
        raise UserError(f"{path} has no sheet {sheet!r}; its sheets are {', '.join(book)}")
    if sheet is None and len(filled) != 1:
        raise UserError(f"{path} has {len(filled)} sheets with rows: name one with --sheet: {', '.join(book)}")
    table = book[sheet] if sheet is not None else next(iter(filled.values()))
    texts = table.map(str)
    filled_cells = (texts != "").sum(axis=1).head(LOOKED_AT)
    if not filled_cells.any():
        raise TableError(f"{path}: the sheet is empty; it needs a header and rows")
    start = int((filled_cells > HEADER_FILLED * filled_cells.max()).to_numpy().argmax())
    header, texts = texts.iloc[start].str.strip(), texts.iloc[start + 1 :]
    texts = texts.set_axis(header, axis=1).loc[:, ((header != "") | (texts != "").any()).to_numpy()]
    if twice := sorted(set(texts.columns[texts.columns.duplicated()])):
        raise TableError(f"{path}: column {', '.join(map(repr, twice))} stands twice in the header", row=start + 1)
    numbered = texts.set_axis(pd.RangeIndex(start + FIRST_ROW, start + FIRST_ROW + len(texts)), axis=0)
    return numbered[(numbered != "").any(axis=1)]
