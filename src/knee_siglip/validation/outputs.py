"""What validation tells: issues.csv, metrics.json, a page to look at, and a table on the screen."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from knee_siglip.report.validation.page import write_page
from knee_siglip.validation.issue import Issue

ISSUES, METRICS, PAGE = "issues.csv", "metrics.json", "index.html"
COLUMNS = ("severity", "check", "row", "file", "message")
SHOWN = 20
PLAIN_WIDTH = 160
"""Columns where stderr is no terminal: a log file should not break file names at 80."""

COLOURS = {"error": "red", "warning": "yellow", "dropped": "magenta"}


def write_report(
    folder: Path, csv_path: Path, table: pd.DataFrame, issues: Sequence[Issue], figures: Mapping[str, Any]
) -> None:
    """Write issues.csv, metrics.json and the page; called on success and on failure."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ISSUES).open("w", encoding="utf-8", newline="") as file:
        # all texts quoted: csv leaves a lone carriage return in a file name bare
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(COLUMNS)
        writer.writerows([_no_formula(getattr(issue, name)) for name in COLUMNS] for issue in issues)
    metrics = {**count_severities(issues), **figures}
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_page(folder / PAGE, csv_path, table, issues, metrics)


def _no_formula(cell: str | int | None) -> str | int:
    """A file name like `=cmd|...` must not run in the spreadsheet that opens issues.csv."""
    if isinstance(cell, int):
        return cell
    return f"'{cell}" if cell and cell[0] in "=+-@\t\r" else cell or ""


def count_severities(issues: Sequence[Issue]) -> dict[str, int]:
    """How many errors, warnings and dropped rows."""
    severities = Counter(issue.severity for issue in issues)
    return {"errors": severities["error"], "warnings": severities["warning"], "dropped": severities["dropped"]}


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
    """The first issues of each check as a table on stderr, errors first: no check hides another."""
    if not issues:
        return
    table = Table("severity", "check", "row", "file", "message", show_lines=False)
    for issue in _worth_showing(issues):
        row = "" if issue.row is None else str(issue.row)
        cells = [issue.check, row, issue.file, issue.message]
        colour = COLOURS[issue.severity]
        table.add_row(f"[{colour}]{issue.severity}[/]", *map(escape, cells))
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    console.print(table)
    if len(issues) > SHOWN:
        console.print(f"and {len(issues) - SHOWN} more in {folder / ISSUES}")
