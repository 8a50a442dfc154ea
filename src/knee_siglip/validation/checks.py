"""What a single row can have wrong: columns, splits, texts, grades, images."""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from knee_siglip.data.manifest import MADE_COLUMNS, SPLITS
from knee_siglip.data.text import normalise_text
from knee_siglip.validation.findings import Finding
from knee_siglip.validation.inspection import Failure, ImageFacts

REQUIRED = ("img_path", "impression", "split")
GRADES = range(5)


def check_columns(table: pd.DataFrame, csv: Path) -> list[Finding]:
    """Required columns there, names of made ones free."""
    findings = []
    names = list(table.columns)
    for name in REQUIRED:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
                hint = "; separate the columns by commas"
            message = f"column {name!r} is missing; the columns are {', '.join(names)}{hint}"
            findings.append(Finding("error", "missing_column", 1, str(csv), message))
    for name in MADE_COLUMNS:
        if name in names:
            message = f"column {name!r} is one that validation makes; rename yours"
            findings.append(Finding("error", "reserved_column", 1, str(csv), message))
    return findings


def check_splits(table: pd.DataFrame) -> list[Finding]:
    """Every row in train, val or test."""
    allowed = ", ".join(SPLITS)
    return [
        Finding("error", "unknown_split", row, path, f"split is {split!r}; allowed: {allowed}")
        for row, path, split in _cells(table, "split")
        if split not in SPLITS
    ]


def check_split_counts(table: pd.DataFrame, csv: Path) -> list[Finding]:
    """Every split has a row: training needs train and val, evaluation needs test."""
    present = set(table["split"])
    return [
        Finding(
            "error",
            "missing_split",
            None,
            str(csv),
            f"no row is left in split {split!r}; train, val and test are needed",
        )
        for split in SPLITS
        if split not in present
    ]


def check_texts(table: pd.DataFrame) -> list[Finding]:
    """No impression that normalisation leaves nothing of."""
    return [
        Finding("error", "empty_text", row, path, f"impression {text!r} holds no text")
        for row, path, text in _cells(table, "impression")
        if not normalise_text(text)
    ]


def check_grades(table: pd.DataFrame) -> list[Finding]:
    """`kl_grade`, where there is one, is 0-4 or empty."""
    if "kl_grade" not in table.columns:
        return []
    return [
        Finding("error", "bad_kl_grade", row, path, f"kl_grade is {value!r}; allowed: 0, 1, 2, 3, 4 or empty")
        for row, path, value in _cells(table, "kl_grade")
        if value.strip() and parse_grade(value) is None
    ]


def parse_grade(value: str) -> int | None:
    """`3` and pandas' `3.0` to 3; None where the cell is empty or no grade."""
    try:
        grade = float(value)
    except ValueError:
        return None
    return int(grade) if grade in GRADES else None


def check_duplicate_rows(table: pd.DataFrame) -> list[Finding]:
    """Rows that repeat an earlier one in every cell. Kept: they only weigh more."""
    first: dict[tuple[str, ...], int] = {}
    findings = []
    for record in table.itertuples(name=None):
        row, cells = record[0], record[1:]
        if (earlier := first.setdefault(cells, row)) != row:
            path = str(table.at[row, "img_path"])
            findings.append(Finding("warning", "duplicate_row", row, path, f"repeats row {earlier} in every cell"))
    return findings


def image_files(table: pd.DataFrame, csv: Path) -> pd.Series:
    """`img_path` to a path that works from here: relative ones start at the CSV's folder."""
    return table["img_path"].map(lambda name: os.path.normpath(csv.parent / name) if name.strip() else "")


def check_outside(files: Iterable[str], images_folder: str) -> list[Finding]:
    """Images outside `data.images`, the folder whose changes DVC watches."""
    watched = _absolute(images_folder)
    outside = sorted({name for name in files if name and not _absolute(name).is_relative_to(watched)})
    if not outside:
        return []
    folder = os.path.commonpath([_absolute(name).parent for name in outside])
    message = (
        f"{len(outside)} images lie outside data.images = {images_folder}: when they change under an unchanged CSV, "
        f"nothing reruns; name their folder: -S data.images={folder}"
    )
    return [Finding("warning", "outside_images", None, outside[0], message)]


def check_images(table: pd.DataFrame, files: pd.Series, inspected: Mapping[str, ImageFacts | Failure]) -> list[Finding]:
    """A finding for every row whose image cannot be used, a warning where it holds nothing."""
    findings = []
    for row, path, name in zip(table.index.tolist(), table["img_path"].tolist(), files, strict=True):
        result = inspected[name] if name else Failure("missing_image", "img_path is empty")
        if isinstance(result, Failure):
            findings.append(Finding("error", result.check, row, path, result.message))
        elif result.std == 0:
            findings.append(Finding("warning", "constant_image", row, path, "every pixel has the same grey"))
    return findings


def _cells(table: pd.DataFrame, column: str) -> Iterable[tuple[int, str, str]]:
    """(spreadsheet row, img_path, cell) for every row."""
    return zip(table.index.tolist(), table["img_path"].tolist(), table[column].tolist(), strict=True)


def _absolute(name: str) -> Path:
    """Symbolic links stay: DVC looks at the path, not at where it leads."""
    return Path(os.path.normpath(Path(name).absolute()))
