"""Leaks between splits: a patient, a study or an image in more than one.

Checks go from strong to weak: patient, study, file bytes, pixels, near-duplicates. A weaker image check does not repeat
what a stronger one has reported.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.manifest import SPLITS, add_flag
from knee_siglip.validation.images.near_duplicates import Pair
from knee_siglip.validation.issue import Issue, Severity

RANK = {split: rank for rank, split in enumerate(SPLITS)}
"""`drop` removes rows from the lower of two splits: test is never touched."""

ROWS_NAMED = 4


@dataclass(frozen=True)
class Leak:
    """Rows (in the table's order) that share something although they are in different splits."""

    check: str
    rows: list[int]
    message: str


def patient_ids(table: pd.DataFrame, pattern: str | None) -> tuple[pd.Series, list[Issue]]:
    """Patient of every row as text, empty where unknown: column patient_id, else `pattern`'s first group in img_path.

    Returns the ids and a warning for what cannot be checked.

    Raises:
        UsageError: the pattern is no regular expression with a group.
    """
    given = table["patient_id"].str.strip() if "patient_id" in table.columns else pd.Series("", table.index, dtype=str)
    if pattern is not None:
        _check_pattern(pattern)
        derived = table["img_path"].str.extract(pattern).iloc[:, 0]
        given = given.where(given != "", derived.fillna(""))
    unknown = given.index[given == ""]
    if unknown.empty:
        return given, []
    rows = "all rows" if len(unknown) == len(table) else f"{len(unknown)} of {len(table)} rows, the first {unknown[0]}"
    message = (
        f"no patient is known of {rows}: whether a patient is in two splits cannot be checked there; add a column "
        "patient_id, or set data.patient_id_pattern, a regular expression whose first group is the patient in img_path"
    )
    return given, [Issue("warning", "unknown_patient", None, "", message)]


def id_key(text: str) -> str:
    """What two spellings of one id have in common: case, spaces and leading zeros do not count.

    `P007`, `p7 ` and `P 07` are one id, `0007` and `7` too. Other marks count (`1-2` is not `12`), and so do letters
    (`A1` is not `1`) and zeros inside or behind a number (`7.01` is not `7.1`).
    """
    return re.sub(r"(?<![0-9.])0+(?=[0-9])", "", "".join(text.split()).casefold())


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
    known = table[(keys != "") & table["split"].isin(SPLITS)]
    known_keys = keys[known.index]
    leaking = known[known.groupby(known_keys)["split"].transform("nunique") > 1]
    for _, group in leaking.groupby(known_keys[leaking.index], sort=False):
        yield group


def _shared_ids(table: pd.DataFrame, name: str) -> Iterator[Leak]:
    """name: patient or study; their ids are compared by `id_key`."""
    column = f"{name}_id"
    if column not in table.columns:
        return
    for group in _leaking(table, table[column].map(id_key)):
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
    groups = table[table["split"].isin(SPLITS)].groupby("pixel_id").groups if alike else {}
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
