"""Leaks between splits: a patient, a study or an image in more than one.

Checks go from strong to weak: patient, study, file bytes, pixels, near-duplicates. A weaker image check does not repeat
what a stronger one has reported.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.ids import id_keys, is_rounded, known_ids
from knee_siglip.tables.manifest import ALL_SPLITS, EXTERNAL, SPLITS, add_flag
from knee_siglip.validation.images.near_duplicates import Pair
from knee_siglip.validation.issue import Issue, Severity, issues_of_rows

RANK = {split: rank for rank, split in enumerate((EXTERNAL, *SPLITS))}
"""`drop` removes rows from the lower of two splits: never from test, and from an external set before train."""

ROWS_NAMED = 4
PLACEHOLDERS_NAMED = 5


@dataclass(frozen=True)
class Leak:
    """Rows (in the table's order) that share something although they are in different splits."""

    check: str
    rows: list[int]
    message: str


def patient_ids(table: pd.DataFrame, pattern: str | None) -> tuple[pd.Series, list[Issue]]:
    """Patient of every row as text, empty where unknown: column patient_id, else `pattern`'s first group in img_path.

    Placeholders and rounded numbers (`id_key`) name nobody. Returns the ids and warnings for what cannot be checked.

    Raises:
        UsageError: the pattern is no regular expression with a group.
    """
    given = known_ids(table["patient_id"]) if "patient_id" in table.columns else pd.Series("", table.index, dtype=str)
    issues = check_ids(table, "patient_id")
    if pattern is not None:
        _check_pattern(pattern)
        given = given.where(given != "", known_ids(table["img_path"].str.extract(pattern).iloc[:, 0]))
    unknown = given.index[given == ""]
    if unknown.empty:
        return given, issues
    rows = "all rows" if len(unknown) == len(table) else f"{len(unknown)} of {len(table)} rows, the first {unknown[0]}"
    message = (
        f"no patient is known of {rows}: whether a patient is in two splits cannot be checked there; add a column "
        "patient_id, or set data.patient_id_pattern, a regular expression whose first group is the patient in img_path"
    )
    return given, [*issues, Issue("warning", "unknown_patient", None, "", message)]


def check_ids(table: pd.DataFrame, column: str) -> list[Issue]:
    """Warn of cells that look like ids and are none: placeholders, and numbers whose digits a spreadsheet rounded."""
    if column not in table.columns:
        return []
    cells = table[column].str.strip()
    none = cells[(cells != "") & (known_ids(cells) == "")]
    rounded = none[none.map(is_rounded)]
    issues = issues_of_rows(
        table,
        "rounded_id",
        {
            row: f"{column} {cell} has lost digits: it may be any of many {column.removesuffix('_id')}s, so it is "
            "taken as unknown; export the column as text"
            for row, cell in zip(rounded.index.tolist(), rounded, strict=True)
        },
        f"have a {column} that has lost digits, as in {next(iter(rounded), '')}; they are taken as unknown",
    )
    others = none.drop(rounded.index)
    if len(others):
        counts = others.value_counts()
        named = ", ".join(f"{cell!r} ({count})" for cell, count in counts[:PLACEHOLDERS_NAMED].items())
        more = f" and {len(counts) - PLACEHOLDERS_NAMED} more" if len(counts) > PLACEHOLDERS_NAMED else ""
        message = (
            f"{len(others)} of {len(table)} rows have a placeholder as {column}, taken as unknown: {named}{more}; the "
            f"first is row {others.index[0]}"
        )
        first = int(others.index[0])
        issues.append(Issue("warning", "placeholder_id", first, str(table.at[first, "img_path"]), message))
    return issues


def find_leaks(table: pd.DataFrame, on_leak: str, pairs: Sequence[Pair] = ()) -> tuple[pd.DataFrame, list[Issue]]:
    """Find and handle what is in two splits.

    table: indexed by spreadsheet row, with img_path, split, patient_id, image_id, pixel_id and flags (empty ids are
    unknown); study_id is optional. pairs: near-duplicates (near_duplicates.py).
    Returns the rows kept (all of them unless on_leak is `drop`), with leaking ones flagged, and the issues: one per
    patient, study, image or pair; with `drop` one per dropped row.
    """
    issues: list[Issue] = []
    checks: tuple[Callable[[pd.DataFrame], Iterator[Leak]], ...] = (
        lambda rows: _shared_ids(rows, "patient"),
        lambda rows: _shared_ids(rows, "study"),
        _same_bytes,
        _same_pixels,
        lambda rows: _near_duplicates(rows, pairs),
    )
    for check in checks:  # one after the other: what an earlier check drops, a later one must not see
        leaks = list(check(table))
        if on_leak == "drop":
            table, dropped = _drop(table, leaks)
            issues += dropped
            continue
        severity: Severity = "error" if on_leak == "error" else "warning"
        issues += [_issue(severity, leak, leak.rows[0], table, leak.message) for leak in leaks]
        for name in dict.fromkeys(leak.check for leak in leaks):
            rows = {row for leak in leaks if leak.check == name for row in leak.rows}
            table = add_flag(table, table.index[table.index.isin(rows)], name)
    return table, issues


def check_repeated_images(table: pd.DataFrame) -> list[Issue]:
    """The same bytes, or the same pixels in other bytes, under two names within a split: a warning."""
    issues = []
    for check, same, differing, what in (
        ("repeated_image", "image_id", "image_file", "the same image"),
        ("repeated_pixels", "pixel_id", "image_id", "the same pixels in different files"),
    ):
        known = table[table[same] != ""]
        several = known.groupby(["split", same])[differing].transform("nunique") > 1
        for _, group in known[several].groupby(["split", same], sort=False):
            first, *others = group.index.tolist()
            message = f"{what} under {group['image_file'].nunique()} names: {_where(group)}"
            issues.append(Issue("warning", check, first, str(group["img_path"].iloc[0]), message, tuple(others)))
    return issues


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UsageError(f"data.patient_id_pattern = {pattern!r} is no regular expression: {error}") from None
    if not groups:
        raise UsageError(f"data.patient_id_pattern = {pattern!r} has no group; put the patient's part in (...)")


def _leaking(table: pd.DataFrame, keys: pd.Series) -> Iterator[pd.DataFrame]:
    """Groups of rows that have a key in common and lie in more than one split."""
    known = table[(keys != "") & table["split"].isin(ALL_SPLITS)]
    known_keys = keys[known.index]
    leaking = known[known.groupby(known_keys)["split"].transform("nunique") > 1]
    for _, group in leaking.groupby(known_keys[leaking.index], sort=False):
        yield group


def _shared_ids(table: pd.DataFrame, name: str) -> Iterator[Leak]:
    """name: patient or study; their ids are compared by `id_key`."""
    column = f"{name}_id"
    if column not in table.columns:
        return
    for group in _leaking(table, id_keys(table[column])):
        spellings = list(dict.fromkeys(group[column].str.strip()))
        named = spellings[0] if len(spellings) == 1 else f"{', '.join(map(repr, spellings))} (taken as one {name})"
        yield Leak(f"{name}_leak", group.index.tolist(), f"{name} {named} is in {_where(group)}")


def _same_bytes(table: pd.DataFrame) -> Iterator[Leak]:
    for group in _leaking(table, table["image_id"]):
        yield Leak("image_leak", group.index.tolist(), f"the same image is in {_where(group)}")


def _same_pixels(table: pd.DataFrame) -> Iterator[Leak]:
    """Equal pixels in files that differ."""
    for group in _leaking(table, table["pixel_id"]):
        if group["image_id"].nunique() > 1:
            message = f"identical pixels in different files are in {_where(group)}"
            yield Leak("pixel_leak", group.index.tolist(), message)


def _near_duplicates(table: pd.DataFrame, pairs: Sequence[Pair]) -> Iterator[Leak]:
    """A pair stands for all rows with the pixels of its two images."""
    alike = [pair for pair in pairs if pair.pixels_a and pair.pixels_b]
    groups = table[table["split"].isin(ALL_SPLITS)].groupby("pixel_id").groups if alike else {}
    for pair in alike:
        first, second = list(groups.get(pair.pixels_a, [])), list(groups.get(pair.pixels_b, []))
        group = table.loc[sorted(first + second)]
        if first and second and group["split"].nunique() > 1:
            one, other = table.loc[first], table.loc[second]
            message = (
                f"near-duplicate images (similarity {pair.similarity:.2f}, {pair.relation}): "
                f"{_where(one)} shows the same as {_where(other)}"
            )
            yield Leak("near_duplicate_leak", group.index.tolist(), message)


def _drop(table: pd.DataFrame, leaks: Sequence[Leak]) -> tuple[pd.DataFrame, list[Issue]]:
    """Drop the rows of each leak that are not in the highest split of those still there."""
    rank = table["split"].map(RANK)
    gone: dict[int, Issue] = {}
    for leak in sorted(leaks, key=lambda leak: -int(rank[leak.rows].max())):
        rows = [row for row in leak.rows if row not in gone]
        highest = max((rank[row] for row in rows), default=0)
        for row in rows:
            if rank[row] < highest:
                message = f"dropped from {table.at[row, 'split']!s}: {leak.message}"
                gone[row] = _issue("dropped", leak, row, table, message)
    return table.drop(index=list(gone)), [gone[row] for row in sorted(gone)]


def _issue(severity: Severity, leak: Leak, row: int, table: pd.DataFrame, message: str) -> Issue:
    related = tuple(other for other in leak.rows if str(table.at[other, "split"]) != str(table.at[row, "split"]))
    return Issue(severity, leak.check, row, str(table.at[row, "img_path"]), message, related)


def _where(group: pd.DataFrame) -> str:
    """`train (rows 2, 3) and test (row 9)`."""
    parts = []
    for split, rows in group.groupby("split", sort=False):
        numbers = [str(row) for row in rows.index]
        more = f" and {len(numbers) - ROWS_NAMED} more" if len(numbers) > ROWS_NAMED else ""
        parts.append(f"{split} ({'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers[:ROWS_NAMED])}{more})")
    return " and ".join(parts)
