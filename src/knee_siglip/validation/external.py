"""A second test set in a CSV of its own: its rows pass the same checks, beside the first CSV's, as split `external`."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from knee_siglip.core.paths import NO_EXTERNAL
from knee_siglip.tables.manifest import EXTERNAL
from knee_siglip.tables.table import read_table
from knee_siglip.tables.views import view_columns
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.rows import check_columns

FIRST_NUMBER = 2 * 10**12
"""Added to the second CSV's row numbers, so that none looks like one of the first, or like a further image of a row."""

NUMBER = re.compile(r"\b2\d{12}\b")


def read_external(path: str | None, csv: Path) -> tuple[pd.DataFrame, list[Issue]]:
    """Rows of the CSV `path`, all of split `external`, and what is wrong with its columns; no rows without a path.

    Image paths count from its own folder; they are returned as paths from the folder of `csv`.

    Raises:
        TableError: it cannot be read.
    """
    if path is None or (path == str(NO_EXTERNAL) and not NO_EXTERNAL.exists()):
        return pd.DataFrame(), []
    if (table := read_table(Path(path))).empty:
        return pd.DataFrame(), []
    table = table.set_axis(table.index + FIRST_NUMBER, axis=0).assign(split=EXTERNAL)
    folder = os.path.relpath(Path(path).parent, csv.parent)
    images = [name for name in ("img_path", *view_columns(list(table.columns))) if name in table]
    for name in images:
        table[name] = table[name].map(lambda file: str(Path(folder, file)) if file.strip() else "")
    return table, check_columns(table.rename(columns=dict.fromkeys(images, "img_path")), Path(path))


def of_external(issue: Issue, path: str) -> Issue:
    """The issue with the second CSV's own row numbers, and its name where a row of it is meant."""
    if issue.row is not None and issue.row >= FIRST_NUMBER:
        message = f"{path}: {NUMBER.sub(lambda found: str(own_number(int(found[0]))), issue.message)}"
    else:
        message = NUMBER.sub(lambda found: f"{own_number(int(found[0]))} of {path}", issue.message)
    row = None if issue.row is None else own_number(issue.row)
    return replace(issue, row=row, message=message, related=tuple(map(own_number, issue.related)))


def own_number(row: int) -> int:
    """The number of a row in the CSV that it stands in."""
    return row - FIRST_NUMBER if row >= FIRST_NUMBER else row
