"""The rows of a batch: a CSV with `img_path`, or the validated manifest."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.manifest import read_manifest
from knee_siglip.tables.table import read_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRows:
    """`rows` (N, columns): texts, `img_path` first. `files` (N,): where each image lies; None if the row names none."""

    rows: pd.DataFrame
    files: list[Path | None]

    def __len__(self) -> int:
        return len(self.files)


def read_rows(path: Path, split: str | None = None) -> ImageRows:
    """Read a CSV (every row; relative `img_path` from its folder) or the manifest (`*.parquet`: `split` or all).

    The whole table is held, some hundred bytes a row; pixels and embeddings are not.

    Raises:
        UsageError: the file is missing, has no `img_path` or no rows.
        UserError: the file is no CSV in UTF-8, or a `*.parquet` file is no manifest.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; it must be a CSV with the column img_path, or the validated manifest")
    is_manifest = path.suffix == ".parquet"
    rows = _read_manifest(path, split) if is_manifest else read_table(path).reset_index(drop=True)
    if "img_path" not in rows.columns:
        raise UsageError(f"{path} has no column img_path; its columns are {', '.join(rows.columns) or 'none'}")
    if rows.empty:
        where = f" with split {split!r}" if is_manifest and split else ""
        raise UsageError(f"{path} has no rows{where}; there is nothing to infer")
    names = rows["image_file" if is_manifest else "img_path"]
    folder = Path() if is_manifest else path.parent
    files = [folder / name if name.strip() else None for name in names]
    return ImageRows(rows[["img_path", *rows.columns.drop("img_path")]], files)


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


def _read_manifest(path: Path, split: str | None) -> pd.DataFrame:
    rows = read_manifest(path)
    rows = rows[rows["split"] == split] if split else rows
    # convert_dtypes: a grade column with gaps may be float in pandas, but 2 must not come out as 2.0.
    cells = rows.convert_dtypes().astype(object)
    return cells.where(rows.notna(), "").astype(str).reset_index(drop=True)
