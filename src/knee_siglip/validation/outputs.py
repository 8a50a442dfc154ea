"""What validation tells: findings.csv, metrics.json, a page to look at, and a table on the screen."""

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
from knee_siglip.validation.issue import Finding

FINDINGS, METRICS, PAGE = "findings.csv", "metrics.json", "index.html"
COLUMNS = ("severity", "check", "row", "file", "message")
SHOWN = 20
PLAIN_WIDTH = 160
"""Columns where stderr is no terminal: a log file should not break file names at 80."""

COLOURS = {"error": "red", "warning": "yellow", "dropped": "magenta"}


def write_report(
    folder: Path, csv_path: Path, table: pd.DataFrame, findings: Sequence[Finding], figures: Mapping[str, Any]
) -> None:
    """Write findings.csv, metrics.json and the page; called on success and on failure."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FINDINGS).open("w", encoding="utf-8", newline="") as file:
        # all texts quoted: csv leaves a lone carriage return in a file name bare
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(COLUMNS)
        writer.writerows([_no_formula(getattr(finding, name)) for name in COLUMNS] for finding in findings)
    metrics = {**count_severities(findings), **figures}
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_page(folder / PAGE, csv_path, table, findings, metrics)


def _no_formula(cell: str | int | None) -> str | int:
    """A file name like `=cmd|...` must not run in the spreadsheet that opens findings.csv."""
    if isinstance(cell, int):
        return cell
    return f"'{cell}" if cell and cell[0] in "=+-@\t\r" else cell or ""


def count_severities(findings: Sequence[Finding]) -> dict[str, int]:
    """How many errors, warnings and dropped rows."""
    severities = Counter(finding.severity for finding in findings)
    return {"errors": severities["error"], "warnings": severities["warning"], "dropped": severities["dropped"]}


def _worth_showing(findings: Sequence[Finding]) -> list[Finding]:
    """At most `SHOWN`, errors first: the first of every check, then as many more as there is room for."""

    def severity(finding: Finding) -> int:
        return list(COLOURS).index(finding.severity)

    ranked = sorted(findings, key=severity)
    first = {finding.check: finding for finding in reversed(ranked)}
    others = [finding for finding in ranked if first[finding.check] is not finding]
    chosen = [*sorted(first.values(), key=severity), *others][:SHOWN]
    return sorted(chosen, key=lambda finding: (severity(finding), ranked.index(finding)))


def show(findings: Sequence[Finding], folder: Path) -> None:
    """The first findings of each check as a table on stderr, errors first: no check hides another."""
    if not findings:
        return
    table = Table("severity", "check", "row", "file", "message", show_lines=False)
    for finding in _worth_showing(findings):
        row = "" if finding.row is None else str(finding.row)
        cells = [finding.check, row, finding.file, finding.message]
        colour = COLOURS[finding.severity]
        table.add_row(f"[{colour}]{finding.severity}[/]", *map(escape, cells))
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    console.print(table)
    if len(findings) > SHOWN:
        console.print(f"and {len(findings) - SHOWN} more in {folder / FINDINGS}")
