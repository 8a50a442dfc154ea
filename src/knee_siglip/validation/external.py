"""A second test set in a CSV of its own: its rows pass the same checks, beside the first CSV's, as split `external`."""

import os
from pathlib import Path

import pandas as pd

from knee_siglip.tables.manifest import EXTERNAL
from knee_siglip.tables.table import read_table
from knee_siglip.tables.views import view_columns
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.rows import check_columns


def read_external(path: str | None, csv: Path) -> tuple[pd.DataFrame, list[Issue]]:
    """Rows of the CSV `path`, all of split `external`, and what is wrong with its columns; no rows without a path.

    Image paths count from its own folder; they are returned as paths from the folder of `csv`.

    Raises:
        TableError: it cannot be read.
    """
    if path is None or (table := read_table(Path(path))).empty:
        return pd.DataFrame(), []
    table = table.assign(split=EXTERNAL)
    folder = os.path.relpath(Path(path).parent, csv.parent)
    images = [name for name in ("img_path", *view_columns(list(table.columns))) if name in table]
    for name in images:
        table[name] = table[name].map(lambda file: str(Path(folder, file)) if file.strip() else "")
    return table, check_columns(table.rename(columns=dict.fromkeys(images, "img_path")), Path(path))
