"""Writes and shows the results of validation.

issues.csv is for a spreadsheet, metrics.json for `dvc metrics diff`; the page is drawn from both and from rows.parquet.
"""

import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from rich.markup import escape
from rich.table import Table

from knee_siglip.core.cells import as_meant, defanged, printable
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file, atomic_text
from knee_siglip.core.metrics_file import write_metrics
from knee_siglip.core.terminal import Terminal
from knee_siglip.validation.issue import Issue, Severity

ISSUES, METRICS, ROWS = "issues.csv", "metrics.json", "rows.parquet"

COLUMNS = ("severity", "check", "row", "file", "message", "related")

ROWS_COLUMNS = (
    *("csv_row", "img_path", "impression", "split", "patient_id", "side", "view", "text"),
    *("image_file", "image_id", "width", "height", "kind", "file_bytes", "mean", "std"),
)
"""Columns of rows.parquet beside the labels, as far as the checked table has them; its index counts rows as a
spreadsheet does."""

SHOWN = 20
PLAIN_WIDTH = 160
"""Columns where stderr is no terminal: a log file should not break file names at 80."""

COLOURS = {"error": "red", "warning": "yellow", "dropped": "magenta"}


def remove_results(folder: Path) -> None:
    """Remove an earlier validation's results, which would pass for this one's if it is killed."""
    for name in (ISSUES, METRICS, ROWS):
        (folder / name).unlink(missing_ok=True)


def write_results(
    folder: Path, table: pd.DataFrame, issues: Sequence[Issue], metrics: Mapping[str, Any], label_column: str
) -> None:
    """Write issues.csv, metrics.json and rows.parquet, whether there are errors or not."""
    with atomic_text(folder / ISSUES) as file:
        # all texts quoted: csv leaves a lone carriage return in a file name bare
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(COLUMNS)
        writer.writerows(_cells(issue) for issue in issues)
    severities = Counter(issue.severity for issue in issues)
    counts = {"errors": severities["error"], "warnings": severities["warning"], "dropped": severities["dropped"]}
    write_metrics(folder / METRICS, {**counts, **metrics})
    names = dict.fromkeys((*ROWS_COLUMNS, label_column))
    with atomic_file(folder / ROWS) as rows:
        table[[name for name in names if name in table]].to_parquet(rows)


def read_issues(folder: Path) -> list[Issue]:
    """Read issues.csv as it was written.

    Raises:
        UserError: it is damaged.
    """
    limit = csv.field_size_limit(sys.maxsize)  # a sentence around a file name may be longer than csv's default
    try:
        with (folder / ISSUES).open(encoding="utf-8", newline="") as file:
            return [_issue(cells) for cells in csv.DictReader(file)]
    except (KeyError, AttributeError, ValueError, csv.Error) as error:  # cut rows have None for what is missing
        raise UserError(f"{folder / ISSUES} is damaged ({error}); remove it, then run dvc repro") from None
    finally:
        csv.field_size_limit(limit)


def _cells(issue: Issue) -> list[str | int]:
    related = " ".join(map(str, issue.related))
    row = "" if issue.row is None else issue.row
    return [issue.severity, defanged(issue.check), row, defanged(issue.file), defanged(issue.message), related]


def _issue(cells: Mapping[str, str]) -> Issue:
    return Issue(
        severity=cast(Severity, cells["severity"]),
        check=as_meant(cells["check"]),
        row=int(cells["row"]) if cells["row"] else None,
        file=as_meant(cells["file"]),
        message=as_meant(cells["message"]),
        related=tuple(map(int, cells["related"].split())),
    )


def _worth_showing(issues: Sequence[Issue]) -> list[Issue]:
    """At most `SHOWN`, errors first: the first of every check, then as many more as there is room for."""

    def severity(issue: Issue) -> int:
        return list(COLOURS).index(issue.severity)

    ranked = sorted(issues, key=severity)
    first = {issue.check: issue for issue in reversed(ranked)}
    others = [issue for issue in ranked if first[issue.check] is not issue]
    chosen = [*sorted(first.values(), key=severity), *others][:SHOWN]
    return sorted(chosen, key=lambda issue: (severity(issue), ranked.index(issue)))


def show(issues: Sequence[Issue], folder: Path) -> None:
    """Print the first issues of each check as a table on stderr, errors first: no check hides another."""
    if not issues:
        return
    table = Table("severity", "check", "row", "file", "message", show_lines=False)
    for issue in _worth_showing(issues):
        row = "" if issue.row is None else str(issue.row)
        cells = map(printable, (issue.check, row, issue.file, issue.message))
        colour = COLOURS[issue.severity]
        table.add_row(f"[{colour}]{issue.severity}[/]", *map(escape, cells))
    console = Terminal(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    console.print(table)
    if len(issues) > SHOWN:
        console.print(f"and {len(issues) - SHOWN} more in {folder / ISSUES}")
