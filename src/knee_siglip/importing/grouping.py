"""Rows of one image put together: several readers, two knees on one film, repeated rows."""

from collections.abc import Mapping, Sequence

import pandas as pd

from knee_siglip.core.files import sha256
from knee_siglip.importing.columns import IMAGE, ROW, TABLE, column
from knee_siglip.importing.files import Files
from knee_siglip.importing.outcome import Outcome

SECOND = "_second_reader"


def vote(rows: pd.DataFrame, by: str, labels: Sequence[str], outcome: Outcome) -> pd.DataFrame:
    """Rows of one image by several readers to one: a label is there if more than half of them saw it.

    Raises:
        UserError: the column `by` is missing.
    """
    groups = rows.groupby(column(rows, by, "the readings"), sort=False)
    names = [name for name in labels if name in rows.columns]
    seen = rows[names].isin(["1", "1.0"]).groupby(rows[by], sort=False)
    known = (rows[names] != "").groupby(rows[by], sort=False).any()
    share = seen.mean()
    voted = share.gt(0.5).astype(int).astype(str).where(known, "")
    first = groups.first()
    others = [name for name in rows.columns if name not in (*names, by, TABLE, ROW)]
    for name in others:
        first[name] = groups[name].agg(lambda cells: "; ".join(dict.fromkeys(cells)))
    first[names] = voted
    if len(first) < len(rows):
        split = int((share.gt(0) & share.lt(1)).any(axis=1).sum())
        outcome.note(
            f"{len(rows):,} readings of {len(first):,} images: a label counts where more than half of the readers "
            f"saw it; on {split:,} images they differ in some label"
        )
    return first.reset_index()[list(rows.columns)]


def second_reader(
    rows: pd.DataFrame, main: Mapping[str, str], graded: str, files: Files, outcome: Outcome
) -> pd.DataFrame:
    """The main reader's rows, with the other one's grade of the same image, by its bytes, as a column of its own."""
    ((reader, name),) = main.items()
    digests = rows[IMAGE].map(lambda image: sha256(files.root / image))
    chosen = column(rows, reader, "the readings") == name
    other = rows.loc[~chosen, graded].groupby(digests[~chosen]).first()
    unread = ~chosen & ~digests.isin(set(digests[chosen]))
    again = f"another reader's copy of an image: its grade is the column {graded}{SECOND}"
    rows = rows.assign(**{f"{graded}{SECOND}": digests.map(other).fillna("")})
    rows = outcome.drop(rows, unread, f"{name} did not grade this image")
    return outcome.drop(rows, rows[reader] != name, again)


def two_knees(rows: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """Rows of one film, right and left, to one: side `both`, both impressions, and grades as columns for each side.

    An image for which several readings of one side remain is dropped: its name tells no visit.
    """
    several = rows.duplicated([IMAGE, "side"], keep=False)
    reason = "readings of several visits fit: the image's name tells none; leave one visit's table in the folder"
    rows = outcome.drop(rows, rows[IMAGE].isin(set(rows.loc[several, IMAGE])), reason)
    pairs = rows[rows.duplicated(IMAGE, keep=False)]
    if pairs.empty:
        return rows
    right, left = (pairs[pairs["side"] == side].set_index(IMAGE) for side in ("right", "left"))
    films = right.copy()
    for name in right.columns.difference([TABLE, ROW, "side", "impression"], sort=False):
        if (right[name] != left[name].reindex(right.index)).any() or name == "kl_grade":
            films[f"{name}_right"], films[f"{name}_left"] = right[name], left[name]
            films[name] = ""
    films["impression"] = (right["impression"] + " " + left["impression"].reindex(right.index)).str.strip()
    films["side"] = "both"
    outcome.note(
        f"{len(films):,} films show both knees: one row each, with both knees in the impression, the grades as "
        "kl_grade_right and kl_grade_left, and no kl_grade; crop the knees first to train on grades"
    )
    single = rows[~rows.index.isin(pairs.index)]
    return pd.concat([single, films.reset_index()], ignore_index=True).fillna("")


def one_row_per_image(rows: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """The first row of each image that has an impression."""
    rows = outcome.drop(rows, rows["impression"] == "", "no impression: the source has no text or label for it")
    repeated = rows.duplicated(IMAGE)
    same = rows.duplicated([IMAGE, "impression"])
    rows = outcome.drop(rows, repeated & same, "repeats the image and impression of an earlier row")
    return outcome.drop(rows, rows.duplicated(IMAGE), "another impression of an image that has one; the first counts")
