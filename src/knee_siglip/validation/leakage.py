"""Leaks between splits: a patient, or the same image, in more than one."""

import re
from collections.abc import Callable

import pandas as pd

from knee_siglip.data.manifest import SPLITS
from knee_siglip.errors import UsageError
from knee_siglip.validation.findings import Finding, Severity

Describe = Callable[[str, pd.DataFrame], str]

RANK = {split: rank for rank, split in enumerate(SPLITS)}
"""Of two splits that share something, `drop` takes the rows out of the lower one: test is never touched."""

ROWS_NAMED = 4


def patient_ids(table: pd.DataFrame, pattern: str | None) -> tuple[pd.Series, list[Finding]]:
    """Patient of every row, as text; empty where unknown. `pattern`'s first group in img_path where no column says it.

    Returns the ids and a warning for what cannot be checked.

    Raises:
        UsageError: the pattern is no regular expression with a group.
    """
    given = table["patient_id"].str.strip() if "patient_id" in table.columns else pd.Series("", table.index, dtype=str)
    if pattern is not None:
        derived = table["img_path"].map(_extractor(pattern))
        given = given.where(given != "", derived)
    unknown = given.index[given == ""]
    if unknown.empty:
        return given, []
    rows = "no row has" if len(unknown) == len(table) else f"{len(unknown)} rows, the first {unknown[0]}, have no"
    message = (
        f"{rows} patient: whether a patient is in two splits cannot be checked there; add a column patient_id, or set "
        "data.patient_id_pattern, a regular expression whose first group is the patient in img_path"
    )
    return given, [Finding("warning", "unknown_patient", None, "", message)]


def find_leaks(table: pd.DataFrame, on_leak: str) -> tuple[pd.DataFrame, list[Finding]]:
    """Handle patients, then images, that are in two splits.

    table: indexed by spreadsheet row, with img_path, split, patient_id, image_id and flags (empty ids are unknown).
    Returns the rows that stay (all, but for `drop`), leaking ones flagged, and the findings: with `error` and `warn`
    one for each patient or image, with `drop` one for each dropped row.
    """
    findings: list[Finding] = []
    for column, name, describe in (("patient_id", "patient_leak", _patient), ("image_id", "image_leak", _image)):
        leaking = _leaking(table, column)
        if on_leak == "drop":
            dropped = _lower(leaking, column)
            findings += _dropped(dropped, leaking, column, name, describe)
            table = table.drop(index=dropped.index)
            continue
        severity: Severity = "error" if on_leak == "error" else "warning"
        for key, group in leaking.groupby(column, sort=False):
            message = describe(str(key), group)
            findings.append(Finding(severity, name, int(group.index[0]), str(group["img_path"].iloc[0]), message))
        table = _flag(table, leaking.index, name)
    return table, findings


def check_repeated_images(table: pd.DataFrame) -> list[Finding]:
    """The same bytes under two names within a split: kept, and named."""
    findings = []
    known = table[table["image_id"] != ""]
    for _, group in known.groupby(["split", "image_id"], sort=False):
        if group["image_file"].nunique() > 1:
            message = f"the same image under {group['image_file'].nunique()} names: {_where(group)}"
            path = str(group["img_path"].iloc[0])
            findings.append(Finding("warning", "repeated_image", int(group.index[0]), path, message))
    return findings


def _extractor(pattern: str) -> Callable[[str], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"data.patient_id_pattern = {pattern!r} is no regular expression: {error}") from None
    if not expression.groups:
        raise UsageError(f"data.patient_id_pattern = {pattern!r} has no group; put the patient's part in (...)")

    def extract(path: str) -> str:
        match = expression.search(path)
        return (match.group(1) or "") if match else ""

    return extract


def _leaking(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows whose id is in more than one split."""
    known = table[(table[column] != "") & table["split"].isin(SPLITS)]
    splits = known.groupby(column)["split"].transform("nunique")
    return known[splits > 1]


def _lower(leaking: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of leaking rows those that are not in the highest split of their id."""
    rank = leaking["split"].map(RANK)
    highest = rank.groupby(leaking[column]).transform("max")
    return leaking[rank < highest]


def _dropped(dropped: pd.DataFrame, leaking: pd.DataFrame, column: str, name: str, describe: Describe) -> list[Finding]:
    messages = {key: describe(str(key), group) for key, group in leaking.groupby(column, sort=False)}
    return [
        Finding("dropped", name, int(row), path, f"dropped from {split}: {messages[key]}")
        for row, path, split, key in zip(
            dropped.index, dropped["img_path"], dropped["split"], dropped[column], strict=True
        )
    ]


def _patient(patient: str, group: pd.DataFrame) -> str:
    return f"patient {patient} is in {_where(group)}"


def _image(_: str, group: pd.DataFrame) -> str:
    return f"the same image is in {_where(group)}"


def _where(group: pd.DataFrame) -> str:
    """`train (rows 2, 3) and test (row 9)`."""
    parts = []
    for split, rows in group.groupby("split", sort=False):
        numbers = [str(row) for row in rows.index]
        more = f" and {len(numbers) - ROWS_NAMED} more" if len(numbers) > ROWS_NAMED else ""
        parts.append(f"{split} ({'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers[:ROWS_NAMED])}{more})")
    return " and ".join(parts)


def _flag(table: pd.DataFrame, rows: pd.Index, flag: str) -> pd.DataFrame:
    """The table with `flag` added to the rows' flags."""
    flags = table["flags"].copy()
    flags.loc[rows] = flags.loc[rows].map(lambda old: f"{old};{flag}" if old else flag)
    return table.assign(flags=flags)
