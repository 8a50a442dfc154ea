"""Checks of columns and single rows: splits, grades, duplicates, image files."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from knee_siglip.imaging.appearance import appearance_warnings
from knee_siglip.tables.manifest import ALL_SPLITS, MADE_COLUMNS, SPLITS, TOKENS_COLUMN, add_flag
from knee_siglip.tables.watched import outside_images
from knee_siglip.task.task import Labels
from knee_siglip.validation.images.inspection import Failure, Result
from knee_siglip.validation.issue import Issue, issues_of_rows

REQUIRED = ("img_path", "impression", "split")

SPLIT_SYNONYMS = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(("training", "tr"), "train"),
    **dict.fromkeys(("valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("testing", "holdout", "hold-out", "eval", "evaluation"), "test"),
}
"""Names in other projects: only suggested, never converted, since their `validation` may be our test."""

CELL_LENGTH, LISTED_LENGTH = 60, 500
"""Characters of a cell, and of the header, that a sentence quotes."""

APPEARANCE = {
    "constant_image": "have one grey only",
    "flat_image": "are nearly flat",
    "inverted_image": "seem inverted",
    "doubtful_elements": "have DICOM elements that were passed over",
}
"""What many images have in common, for each check of `appearance_warnings`."""


def check_columns(table: pd.DataFrame, csv: Path) -> list[Issue]:
    """Required columns are present, and no column has the name of one that validation adds."""
    issues = []
    names = list(table.columns)
    for name in REQUIRED:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = shorten(", ".join(names), LISTED_LENGTH)
            message = f"column {name!r} is missing; the columns are {listed}{hint}"
            issues.append(Issue("error", "missing_column", 1, str(csv), message))
    for name in (*MADE_COLUMNS, TOKENS_COLUMN):
        if name in names:
            message = f"column {name!r} is one that validation makes; rename yours"
            issues.append(Issue("error", "reserved_column", 1, str(csv), message))
    return issues


def check_splits(table: pd.DataFrame) -> list[Issue]:
    """Every row is in train, val, test or external."""
    issues = []
    for row, path, split in _cells(table, "split"):
        if split not in ALL_SPLITS:
            near = SPLIT_SYNONYMS.get(split.strip().casefold())
            hint = f"; did you mean {near!r}?" if near else ""
            message = f"split is {shorten(split)!r}; allowed: {', '.join(ALL_SPLITS)}{hint}"
            issues.append(Issue("error", "unknown_split", row, path, message))
    return issues


def check_split_counts(table: pd.DataFrame, csv: Path) -> list[Issue]:
    """Every split has a row: training needs train and val, evaluation needs test."""
    missing = [split for split in SPLITS if not (table["split"] == split).any()]
    message = "no row is left in split {!r}; train, val and test are needed"
    return [Issue("error", "missing_split", None, str(csv), message.format(split)) for split in missing]


def check_labels(table: pd.DataFrame, labels: Labels) -> list[Issue]:
    """Every cell of the column of labels is a label or empty."""
    if not labels or labels.column not in table.columns:
        return []
    allowed = f"allowed: {', '.join(labels.values)} or empty"
    return [
        Issue("error", "bad_label", row, path, f"{labels.column} is {shorten(value)!r}; {allowed}")
        for row, path, value in _cells(table, labels.column)
        if value.strip() and labels.position(value) < 0
    ]


def parse_labels(table: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """The table with its labels as numbers or text; empty cells are missing values."""
    if not labels or labels.column not in table.columns:
        return table
    grades = labels.positions(table[labels.column])
    cells: list[Any] = [labels.cell(grade) if grade >= 0 else None for grade in grades]
    return table.assign(**{labels.column: pd.array(cells, dtype="Int64" if labels.are_numbers else "string")})


def check_duplicate_rows(table: pd.DataFrame) -> list[Issue]:
    """Warn of rows that repeat an earlier one in every cell; they are kept."""
    first: dict[tuple[str, ...], int] = {}
    originals = [first.setdefault(record[1:], record[0]) for record in table.itertuples(name=None)]
    return [
        Issue("warning", "duplicate_row", row, path, f"repeats row {original} in every cell")
        for original, (row, path, _) in zip(originals, _cells(table, "img_path"), strict=True)
        if original != row
    ]


def image_files(table: pd.DataFrame, csv: Path) -> pd.Series:
    """Resolve `img_path` against the CSV's folder."""
    return table["img_path"].map(lambda name: os.path.normpath(csv.parent / name) if name.strip() else "")


def check_outside(files: Iterable[str], images_folder: str) -> list[Issue]:
    """Warn of images outside `data.images`, the folder that DVC watches."""
    outside, message = outside_images(files, images_folder, "data.images")
    return [Issue("warning", "outside_images", None, outside[0], message)] if outside else []


def check_folders(files: Iterable[str]) -> list[Issue]:
    """An error for each folder that several images lie in and that does not exist, with a similar name beside it."""
    counted = Counter(Path(file).parent for file in files if file)
    lost: Counter[Path] = Counter()
    for folder, count in counted.items():
        if _is_lost(folder):
            lost[next(path for path in (*reversed(folder.parents), folder) if _is_lost(path))] += count
    return [
        Issue("error", "missing_folder", None, str(folder), f"{count:,} images lie in {folder}{_similar(folder)}")
        for folder, count in lost.most_common()
        if count > 1
    ]


def _is_lost(folder: Path) -> bool:
    """Where nobody may look, or the name is too long, each image says so."""
    try:
        return not folder.is_dir()
    except OSError:
        return False


def _similar(folder: Path) -> str:
    with suppress(OSError):  # a folder that may not be listed
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if found := difflib.get_close_matches(folder.name, beside, 1):
            return f", which does not exist; did you mean {folder.with_name(found[0])}?"
    return f", which does not exist; {folder.parent} does"


def check_images(table: pd.DataFrame, files: pd.Series, inspected: Mapping[str, Result]) -> list[Issue]:
    """An error for every row whose image cannot be used."""
    issues = []
    for (row, path, _), name in zip(_cells(table, "img_path"), files, strict=True):
        result = inspected[name] if name else Failure("missing_image", "img_path is empty")
        if isinstance(result, Failure):
            hint = "; write / instead of \\ in img_path" if "\\" in path else ""
            if path.strip() and path != path.strip():
                hint = "; img_path begins or ends with a blank"
            issues.append(Issue("error", result.check, row, path, result.message + hint))
    return issues


def check_appearance(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Issue]]:
    """Warn of constant, nearly flat and inverted images and of doubtful DICOM elements; all are kept."""
    messages: dict[str, dict[int, str]] = {check: {} for check in APPEARANCE}
    measured = table.loc[table["image_id"] != "", ["std", "inverted", "doubtful"]]
    for row, std, inverted, doubtful in measured.itertuples(name=None):
        for check, message in appearance_warnings(std, inverted, doubtful.split()).items():
            messages[check][row] = message
    issues: list[Issue] = []
    for check, problem in APPEARANCE.items():
        issues += issues_of_rows(table, check, messages[check], problem)
        table = add_flag(table, table.index[table.index.isin(list(messages[check]))], check)
    return table, issues


def shorten(text: str, length: int = CELL_LENGTH) -> str:
    """The text, or its beginning and its length."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def _cells(table: pd.DataFrame, column: str) -> Iterable[tuple[int, str, str]]:
    """Spreadsheet row, img_path and cell of every row."""
    return zip(table.index.tolist(), table["img_path"].tolist(), table[column].tolist(), strict=True)
