"""The images of a batch: rows of a CSV, of a Parquet file (such as the validated manifest), or files of a folder.

Rows are read again for every use and never held: memory does not grow with them.
"""

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.core.files import files_below, readable_name, sha256
from knee_siglip.tables.manifest import MADE_COLUMNS
from knee_siglip.tables.table import read_table
from knee_siglip.tables.views import expand_views, view_columns

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

logger = logging.getLogger(__name__)

PARQUET = ".parquet"
ROWS_AT_ONCE = 4096

Row = tuple[list[str], Path | None]
"""Cells in the order of `ImageRows.columns`, and where the image lies; None if the row names none."""


@dataclass(frozen=True)
class ImageRows:
    """columns: `img_path` first. count: of rows. digest: changes with the table. read: iterates from the first row.

    id_cell: the place of a manifest's `image_id` among the columns, which tells that an image has changed since.
    """

    columns: list[str]
    count: int
    digest: str
    read: Callable[[], Iterator[Row]]
    id_cell: int | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return self.read()


def read_rows(path: Path, split: str | None = None) -> ImageRows:
    """Every row of a CSV or Parquet file, relative `img_path` from its folder; of the manifest the rows of `split`.

    Raises:
        UsageError: the file is missing, has no `img_path` or no rows.
        UserError: the file is no CSV in UTF-8, or no Parquet file.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; it must be a CSV or Parquet file with the column img_path")
    rows = _read_parquet(path, split) if path.suffix == PARQUET else _read_csv(path)
    if not rows.count:
        where = f" with split {split!r}" if path.suffix == PARQUET and split else ""
        raise UsageError(f"{path} has no rows{where}; there is nothing to infer")
    return rows


def read_folder(folder: Path) -> ImageRows:
    """Every file below a folder, in the order of their names; hidden ones are left out.

    DICOMs of a PACS have no suffix, so a file's name says nothing: what is no image becomes a row that says so.

    Raises:
        UsageError: there is no such folder, or no file in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    files = list(files_below(folder))
    if not files:
        raise UsageError(f"{folder} holds no file; there is nothing to infer")
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file!r} {facts.st_size} {facts.st_mtime_ns}\n".encode())

    def read() -> Iterator[Row]:
        for file in files:
            yield [readable_name(file.relative_to(folder))], file

    return ImageRows(["img_path"], len(files), digest.hexdigest(), read)


def carried_names(columns: list[str], taken: list[str]) -> list[str]:
    """Names of the carried columns in results.csv: one that collides with a result column is prefixed `input_`."""
    reserved, names = {*taken, *columns}, []
    for column in columns:
        name = column
        while name in taken or (name != column and name in reserved):
            name = f"input_{name}"
        if name != column:
            logger.warning("the input's column %s is carried as %s: %s is a result column", column, name, column)
            reserved.add(name)
        names.append(name)
    return names


def _read_csv(path: Path) -> ImageRows:
    columns, count = _survey(path)
    if columns is None:  # names what is wrong with it, or reads what the survey could not
        return _read_whole(path)
    return _located(path, columns, count, partial(_records, path), "img_path", path.parent, sha256(path))


def _read_whole(path: Path) -> ImageRows:
    """The whole table at once; images in columns for each view get a row each."""
    table = expand_views(read_table(path)).table
    records = table.to_numpy().tolist()
    return _located(
        path, list(table.columns), len(records), lambda: iter(records), "img_path", path.parent, sha256(path)
    )


def _survey(path: Path) -> tuple[list[str] | None, int]:
    """Header and number of rows; None where the CSV is not plain."""
    count = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for cells in reader:
                if cells and (len(cells) != len(header) or any("\0" in cell for cell in cells)):
                    return None, 0
                count += bool(cells)
    except (OSError, ValueError, csv.Error):
        return None, 0
    # without that column the separator may be another one
    is_plain = "img_path" in header and max(Counter(header).values()) == 1 and not any("\0" in name for name in header)
    return (header, count) if is_plain and not view_columns(header) else (None, 0)


def _records(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        next(reader)
        yield from (cells for cells in reader if cells)


def _read_parquet(path: Path, split: str | None) -> ImageRows:
    file = _open_parquet(path)
    columns = list(file.schema_arrow.names)
    is_manifest = {"img_path", "split", *MADE_COLUMNS} <= {*columns}
    if not is_manifest and view_columns(columns):
        return _read_whole(path)
    split = split if is_manifest else None
    count = file.metadata.num_rows
    if split:
        count = sum(row["split"] == split for row in _parquet_rows(file, ["split"]))

    def records() -> Iterator[list[str]]:
        for row in _parquet_rows(_open_parquet(path), columns):
            if split is None or row["split"] == split:
                yield [_cell(row[name]) for name in columns]

    # A manifest names its files from the project's root.
    located = ("image_file", Path()) if is_manifest else ("img_path", path.parent)
    return _located(path, columns, count, records, *located, f"{sha256(path)} {split}")


def _open_parquet(path: Path) -> "ParquetFile":
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def _parquet_rows(file: "ParquetFile", columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()


def _cell(value: object) -> str:
    """A grade column with gaps may be float, but 2 must not come out as 2.0."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _located(
    path: Path,
    columns: list[str],
    count: int,
    records: Callable[[], Iterator[list[str]]],
    name_column: str,
    folder: Path,
    digest: str,
) -> ImageRows:
    """Put `img_path` first, and say where each row's image lies."""
    if "img_path" not in columns:
        raise UsageError(f"{path} has no column img_path; its columns are {', '.join(columns) or 'none'}")
    first, named = columns.index("img_path"), columns.index(name_column)

    def read() -> Iterator[Row]:
        for cells in records():
            name = cells[named]
            ordered = [cells[first], *cells[:first], *cells[first + 1 :]]
            yield ordered, folder / name if name.strip() else None

    ordered_columns = ["img_path", *columns[:first], *columns[first + 1 :]]
    id_cell = ordered_columns.index("image_id") if name_column == "image_file" else None
    return ImageRows(ordered_columns, count, digest, read, id_cell)
