"""Issues as the page shows them: by check, errors first, with pictures of the offenders beside each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.report.html.pictures import Picture
from knee_siglip.report.validation.glossary import explain
from knee_siglip.tables.manifest import ALL_SPLITS
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue

ISSUES_SHOWN = 50
PICTURES_SHOWN, PICTURES_PER_CHECK, PICTURES_PER_ISSUE = 80, 12, 4
EXAMPLES_PER_SPLIT = 8
SEED = 0

SEVERITIES = {
    "error": ("error", "errors"),
    "dropped": ("dropped row", "dropped rows"),
    "warning": ("warning", "warnings"),
}
"""In the order of the page, with the words for one and for more."""


@dataclass(frozen=True)
class Spot:
    """An image that a picture is wanted of. file: its path from here; title, name, text: what stands below it.

    absent: why there can be no picture, empty where the file is worth reading.
    """

    file: str
    title: str
    name: str
    text: str = ""
    absent: str = ""


def group_issues(issues: Iterable[Issue], table: pd.DataFrame, csv: Path, task: Task) -> list[dict[str, Any]]:
    """What the template shows of each check: errors, then dropped rows, then warnings; the most frequent ones first.

    `spots`: of each pictured issue, side by side.
    """
    named: dict[tuple[str, str], list[Issue]] = {}
    for issue in issues:
        named.setdefault((issue.severity, issue.check), []).append(issue)
    order = list(SEVERITIES)
    ranked = sorted(named, key=lambda key: (order.index(key[0]), -len(named[key]), key[1]))
    pictured = sum(any(map(_is_pictured, named[key])) for key in ranked)
    limit = min(PICTURES_PER_CHECK, PICTURES_SHOWN // max(1, pictured))
    return [_group(severity, check, named[severity, check], table, csv, task, limit) for severity, check in ranked]


def example_spots(table: pd.DataFrame, task: Task) -> dict[str, list[Spot]]:
    """Readable images of each split, drawn by a fixed seed, in the table's order."""
    examples = {}
    for split in ALL_SPLITS:
        rows = table.index[(table["split"] == split) & (table["image_id"] != "")].to_numpy()
        if len(rows):
            drawn = np.random.default_rng(SEED).choice(rows, min(EXAMPLES_PER_SPLIT, len(rows)), replace=False)
            examples[split] = [_spot_of_row(table, int(row), task, with_split=False) for row in sorted(drawn)]
    return examples


def cards(spots: Sequence[Spot], pictures: Mapping[str, Picture]) -> list[dict[str, Any]]:
    """Spots with their pictures; those that could not be read from the start say so."""
    return [
        {
            "picture": Picture("", spot.absent) if spot.absent else pictures[spot.file],
            "alt": f"Radiograph {spot.name}, {spot.title}",
            "title": spot.title,
            "file": spot.name,
            "text": spot.text,
        }
        for spot in spots
    ]


def _group(
    severity: str, check: str, issues: list[Issue], table: pd.DataFrame, csv: Path, task: Task, limit: int
) -> dict[str, Any]:
    spots: list[list[Spot]] = []
    picturable = [issue for issue in issues if _is_pictured(issue)]
    for issue in picturable:
        rows = list(dict.fromkeys([issue.row, *issue.related]))[:PICTURES_PER_ISSUE]
        if sum(map(len, spots)) + len(rows) > limit:
            break
        spots.append([_spot(issue, row, table, csv, task) for row in rows if row is not None])
    return {
        "check": check,
        "severity": severity,
        "severity_name": SEVERITIES[severity][len(issues) != 1],
        **explain(check)._asdict(),
        "issues": issues[:ISSUES_SHOWN],
        "total": len(issues),
        "remaining": max(0, len(issues) - ISSUES_SHOWN),
        "spots": spots,
        "unpictured": len(picturable) - len(spots),
    }


def _is_pictured(issue: Issue) -> bool:
    return issue.row is not None and bool(explain(issue.check).pictured or issue.related)


def _spot(issue: Issue, row: int, table: pd.DataFrame, csv: Path, task: Task) -> Spot:
    """A row that was dropped is in the table no more: its file is known by the issue alone."""
    if row in table.index:
        # several images may be of one CSV row, and the issue's file tells which
        meant = table.index[table["img_path"] == issue.file].tolist() if row == issue.row else []
        return _spot_of_row(table, row if row in meant or not meant else meant[0], task)
    title = f"row {row}" + (", dropped" if issue.severity == "dropped" else "")
    if row == issue.row and issue.file:
        return Spot(str(csv.parent / issue.file), title, issue.file)
    return Spot("", title, "", absent="This row was also dropped.")


def _spot_of_row(table: pd.DataFrame, row: int, task: Task, with_split: bool = True) -> Spot:
    values: dict[Any, Any] = table.loc[row].to_dict()
    grade = task.labels.position(values.get(task.labels.column))
    title = [values["split"]] if with_split else []
    title += [f"row {values['csv_row']}"]
    title += [f"patient {values['patient_id']}"] if values["patient_id"] else []
    title += [f"{task.label_short} {task.labels.values[grade]}"] if grade >= 0 else []
    absent = "" if values["image_id"] else "This image cannot be read."
    return Spot(values["image_file"], ", ".join(title), values["img_path"], values["impression"], absent)
