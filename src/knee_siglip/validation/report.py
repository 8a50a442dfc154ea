"""What validation tells: findings.csv, metrics.json and a table on the screen."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from knee_siglip.data.manifest import SPLITS
from knee_siglip.validation.findings import Finding

FINDINGS, METRICS = "findings.csv", "metrics.json"
SHOWN = 20
PLAIN_WIDTH = 160
"""Columns where stderr is no terminal: a log file should not break file names at 80."""

COLOURS = {"error": "red", "warning": "yellow", "dropped": "magenta"}


def write_report(folder: Path, table: pd.DataFrame, findings: Sequence[Finding]) -> None:
    """Write findings.csv and metrics.json; called on success and on failure."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FINDINGS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Finding)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(finding) for finding in findings)
    text = json.dumps(metrics(table, findings), indent=2) + "\n"
    (folder / METRICS).write_text(text, encoding="utf-8")


def metrics(table: pd.DataFrame, findings: Sequence[Finding]) -> dict[str, Any]:
    """Counts of what is in the manifest (on failure: of what was read) and of the findings.

    table: split, patient_id, image_id, text and, where there are grades, kl_grade; may be empty.
    """
    severities = Counter(finding.severity for finding in findings)
    return {
        **_counts(table),
        "errors": severities["error"],
        "warnings": severities["warning"],
        "dropped": severities["dropped"],
        "splits": {split: _split_facts(table[table["split"] == split]) for split in SPLITS},
        "duplicate_texts_across_splits": _share_of_known_texts(table),
    }


def show(findings: Sequence[Finding], folder: Path) -> None:
    """The first findings as a table on stderr, errors first."""
    if not findings:
        return
    order = list(COLOURS)
    ranked = sorted(findings, key=lambda finding: order.index(finding.severity))
    table = Table("severity", "check", "row", "file", "message", show_lines=False)
    for finding in ranked[:SHOWN]:
        row = "" if finding.row is None else str(finding.row)
        cells = [finding.check, row, finding.file, finding.message]
        colour = COLOURS[finding.severity]
        table.add_row(f"[{colour}]{finding.severity}[/]", *map(escape, cells))
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    console.print(table)
    if len(findings) > SHOWN:
        console.print(f"and {len(findings) - SHOWN} more in {folder / FINDINGS}")


def _counts(table: pd.DataFrame) -> dict[str, int]:
    return {
        "rows": len(table),
        "patients": _distinct(table["patient_id"]),
        "images": _distinct(table["image_id"]),
        "distinct_texts": _distinct(table["text"]),
    }


def _split_facts(rows: pd.DataFrame) -> dict[str, Any]:
    facts: dict[str, Any] = dict(_counts(rows))
    if "kl_grade" in rows.columns:
        facts["kl_grades"] = {str(grade): int((rows["kl_grade"] == grade).sum()) for grade in range(5)}
    return facts


def _distinct(values: pd.Series) -> int:
    return int(values[values != ""].nunique())


def _share_of_known_texts(table: pd.DataFrame) -> float:
    """Share of the val and test rows whose normalised text also stands in train."""
    held_out = table[table["split"].isin(["val", "test"])]
    train = table.loc[table["split"] == "train", "text"]
    return float(held_out["text"].isin(train).mean()) if len(held_out) else 0.0
