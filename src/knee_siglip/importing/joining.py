"""Tables put together by an id that both have."""

from collections.abc import Mapping
from itertools import product

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing.columns import ROW, TABLE, WORKING, column, fill, our_value
from knee_siglip.importing.outcome import Join, Outcome
from knee_siglip.tables.ids import id_keys

LEAST_MATCHED = 0.5
"""Share of the rows that find a partner, below which two columns are no common id."""

ASKED = 2000
"""Rows by which a common id is looked for."""


def join(
    rows: pd.DataFrame, other: pd.DataFrame, on: Mapping[str, str], prefer: Mapping[str, str], outcome: Outcome
) -> pd.DataFrame:
    """The rows with the columns of the other table; a row without a partner keeps blanks.

    on: column or template of the rows to that of the other table. A row is compared by those of the keys that it has:
    an image whose name tells no visit meets the readings of every visit. Ids are compared by `id_key`.

    Raises:
        UserError: a key column is missing.
    """
    name = other[TABLE].iloc[0] if len(other) else "the joined table"
    other = _preferred(other, prefer, on, name, outcome)
    left = pd.DataFrame({key: _keys(key, fill(rows, key, "the rows")) for key in on}, rows.index)
    right = pd.DataFrame({key: _keys(key, fill(other, theirs, name)) for key, theirs in on.items()}, other.index)
    numbers = _partners(left, right)
    matched = numbers["right"].notna()
    partners = other.drop(columns=[TABLE, ROW]).reindex(numbers["right"].to_numpy()).fillna("")
    joined = rows.iloc[numbers["left"].to_numpy()].reset_index(drop=True)
    for column_name in partners.columns:
        cells = partners[column_name].reset_index(drop=True)
        if column_name not in joined.columns:
            joined[column_name] = cells
        elif not (same := cells.eq(joined[column_name]) | ~matched).all() and column_name not in _plain_keys(on):
            joined[f"{column_name} ({name})"] = cells.where(~same, "")
    unused = len(other) - numbers["right"].nunique()
    keys = ", ".join(key if key == theirs else f"{key} = {theirs}" for key, theirs in on.items())
    found = int(numbers.loc[matched, "left"].nunique())
    outcome.joins.append(Join(name, keys, found, len(rows) - found, unused))
    return joined


def common_id(rows: pd.DataFrame, other: pd.DataFrame) -> tuple[str, str] | None:
    """The pair of columns by which most rows find a partner; None where too few do.

    The other table's column must tell its rows apart. Of pairs that match as many rows, equal names win.
    """
    asked = rows.sample(min(len(rows), ASKED), random_state=0)
    lefts = {name: _spelt(asked[name]) for name in rows.columns if name not in (TABLE, ROW)}
    lefts = {name: cells for name, cells in lefts.items() if cells.nunique() > 1 or len(asked) == 1}
    rights = {name: _spelt(other[name]) for name in other.columns if name not in WORKING}
    ids = {name: set(cells) - {""} for name, cells in rights.items() if _tells_apart(cells)}
    best, most = None, (LEAST_MATCHED, False)
    for (left, cells), (right, values) in product(lefts.items(), ids.items()):
        share = float(cells[cells != ""].isin(values).sum() / max(1, len(cells)))
        if (share, left.casefold() == right.casefold()) > most:
            best, most = (left, right), (share, left.casefold() == right.casefold())
    return best


def parse_join(text: str) -> tuple[str, tuple[str, str] | None]:
    """`reports.csv`, `reports.csv:study` or `reports.csv:study=StudyID`: the file, and the rows' and its column."""
    file, colon, keys = text.rpartition(":")
    if not colon or "/" in keys or "\\" in keys:  # C:\reports.csv
        return text, None
    ours, _, theirs = keys.partition("=")
    return file, (ours, theirs or ours)


def require_join(rows: pd.DataFrame, other: pd.DataFrame, keys: tuple[str, str] | None) -> tuple[str, str]:
    """The given keys, if both tables have them, else the common id.

    Raises:
        UserError: a given column is missing, or no common id is found.
    """
    name = str(other[TABLE].iloc[0]) if len(other) else "the joined table"
    if keys:
        column(rows, keys[0], "the rows")
        column(other, keys[1], name)
        return keys
    if found := common_id(rows, other):
        return found
    there = ", ".join(theirs for theirs in other.columns if theirs not in WORKING)
    raise UserError(
        f"{name}: no column of it has the ids of the rows in a column that tells its own rows apart; name both with "
        f"--join {name}:COLUMN_OF_THE_ROWS=COLUMN; its columns are {there}"
    )


def _partners(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Pairs of row positions, `left` and index `right`, in the rows' order; `right` is missing where there is none."""
    has = left != ""
    parts = []
    for present, group in left.groupby([has[name] for name in left.columns], sort=False):
        names = [name for name, given in zip(left.columns, present, strict=True) if given]
        numbered = group.assign(left=left.index.get_indexer(group.index))
        if names:
            known = right[(right[names] != "").all(axis=1)]
            keyed = known[names].assign(right=known.index)
            parts.append(numbered.merge(keyed, on=names, how="left")[["left", "right"]])
        else:
            parts.append(numbered[["left"]].assign(right=None))
    return pd.concat(parts).sort_values("left", kind="stable").reset_index(drop=True)


def _preferred(
    other: pd.DataFrame, prefer: Mapping[str, str], on: Mapping[str, str], name: str, outcome: Outcome
) -> pd.DataFrame:
    """One row for each key: the preferred one, else the first."""
    keys = pd.DataFrame({key: _keys(key, fill(other, theirs, name)) for key, theirs in on.items()}, other.index)
    for column_name, value in prefer.items():
        ranked = column(other, column_name, name).str.strip().ne(value)
        keys = keys.loc[ranked.sort_values(kind="stable").index]
    first = keys[~keys.duplicated() | (keys == "").any(axis=1)].index.sort_values()
    if repeated := len(other) - len(first):
        chosen = " and ".join(f"{column_name} {value}" for column_name, value in prefer.items())
        rule = f"those with {chosen} count where there are any, else the first" if prefer else "the first counts"
        outcome.note(f"{name}: {repeated:,} rows have the id of another row; {rule}")
    return other.loc[first].reset_index(drop=True)


def _keys(name: str, cells: pd.Series) -> pd.Series:
    if name == "side":
        return cells.map(lambda cell: our_value("side", cell))
    return id_keys(cells)


def _spelt(cells: pd.Series) -> pd.Series:
    return cells.str.strip().str.casefold().str.removesuffix(".0").str.lstrip("0")


def _tells_apart(cells: pd.Series) -> bool:
    known = cells[cells != ""]
    return len(known) > 0 and known.nunique() >= 0.9 * len(known)


def _plain_keys(on: Mapping[str, str]) -> set[str]:
    return {theirs for key, theirs in on.items() if key == theirs}
