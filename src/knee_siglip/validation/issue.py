"""Issues: one sentence per thing that is wrong, with its row and file.

What thousands of rows share is said once, with its count and the first rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from knee_siglip.tables.views import ExpandedTable

Severity = Literal["error", "warning", "dropped"]

ROWS_LISTED = 20
"""More rows than this with the same warning: one sentence names their number, and only the first are listed."""


@dataclass(frozen=True)
class Issue:
    """One line of issues.csv. row: as a spreadsheet shows it, None where the whole file is meant.

    related: rows of the other side of a leak.
    """

    severity: Severity
    check: str
    row: int | None
    file: str
    message: str
    related: tuple[int, ...] = ()

    def of_csv(self, expanded: ExpandedTable) -> "Issue":
        """The issue with the rows of their CSVs, a second one named, and with `3 (lateral)` for a further image."""
        related = tuple(dict.fromkeys(expanded.name(row).row for row in self.related))
        if self.row is None:
            return replace(self, message=expanded.in_words(self.message), related=related)
        name = expanded.name(self.row)
        message = expanded.in_words(self.message, name.csv)
        return replace(self, row=name.row, message=f"{name.csv}: {message}" if name.csv else message, related=related)


def issues_of_rows(
    table: pd.DataFrame, check: str, messages: Mapping[int, str], problem: str, severity: Severity = "warning"
) -> list[Issue]:
    """An issue for every spreadsheet row in `messages`, in the table's order.

    Errors are all listed, since each has to be mended. Of more than `ROWS_LISTED` warnings the first stay, behind one
    that counts them: "312 rows (15.6 %) `problem`; the first 20 are listed: rows 2, 7, ...".
    """
    rows = [int(row) for row in table.index[table.index.isin(list(messages))]]
    listed = rows if severity == "error" else rows[:ROWS_LISTED]
    issues = [
        Issue(severity, check, row, path, messages[row])
        for row, path in zip(listed, table.loc[listed, "img_path"].tolist(), strict=True)
    ]
    if len(listed) == len(rows):
        return issues
    share = f"{len(rows):,} rows ({len(rows) / len(table):.1%}) {problem}"
    message = f"{share}; the first {ROWS_LISTED} are listed: {name_rows(rows)}"
    return [Issue(severity, check, None, "", message), *issues]


def issues_of_texts(
    table: pd.DataFrame,
    check: str,
    judge: Callable[[str], str | None],
    problem: str,
    column: str = "impression",
) -> list[Issue]:
    """`judge` every distinct text once; what it says of a text is a warning for all rows that have the text."""
    verdicts = {text: verdict for text in table[column].unique().tolist() if (verdict := judge(text))}
    guilty = table.loc[table[column].isin(list(verdicts)), column]
    messages = {row: verdicts[text] for row, text in zip(guilty.index.tolist(), guilty.tolist(), strict=True)}
    return issues_of_rows(table, check, messages, problem)


def name_rows(rows: list[int]) -> str:
    """`row 2`, `rows 2, 3, 9 ...`."""
    more = " ..." if len(rows) > ROWS_LISTED else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:ROWS_LISTED]))}{more}"
