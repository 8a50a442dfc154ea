"""What the evaluation page is made of, read from the files that `evaluation/outputs.py` writes."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knee_siglip.core.cells import as_meant
from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import read_json
from knee_siglip.params.tasks import saved_task
from knee_siglip.report.evaluation.wording import CHANCE, CHANCE_LEVELS, Metric, at, headline_words
from knee_siglip.tables.ids import UNIT_COUNTS
from knee_siglip.tables.manifest import EXTERNAL
from knee_siglip.task.task import Task

Row = Mapping[str, Any]

WORDS = {"split", "baseline", "column", "condition", "finding", "group", "level", "method", "metric", "probabilities"}
WORDS |= {"prompt", "grade"}
"""Columns of tables/*.csv that hold words, even where a word looks like a number."""


@dataclass(frozen=True)
class SplitResults:
    """What was measured on one split: `metrics` nested, as in metrics.json, and of each of tables/*.csv the rows.

    Any measurement may be absent: the page then says so.
    """

    name: str
    task: Task
    metrics: Mapping[str, Any]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def headline(self) -> dict[str, Metric]:
        """The words for the task's headline metrics, by dotted name."""
        return headline_words(self.task)

    def grading(self, name: str) -> Any:
        """A metric of the zero-shot grade, or None."""
        return at(self.metrics, f"{self.task.labels.metrics}.{name}") if self.task.labels else None

    def table(self, name: str) -> Sequence[Row]:
        """Empty where it was not measured."""
        return self.tables.get(name, ())

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % interval of the headline metric `name`, where both bounds are known."""
        low = at(self.metrics, f"{name}_ci_low")
        high = at(self.metrics, f"{name}_ci_high")
        return None if low is None or high is None else (low, high)

    def too_few(self, name: str) -> int | None:
        """How few independent units the metric `name` has for an interval; None where they suffice."""
        few: int | None = at(self.metrics, f"{name}_ci_units")
        return few

    @property
    def units(self) -> dict[str, int]:
        """Number of independent units by kind (`Units.counts`), as far as it was counted."""
        known = {unit: at(self.metrics, name) for unit, name in UNIT_COUNTS.items()}
        return {unit: int(count) for unit, count in known.items() if count is not None}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Baseline to dotted metric to value; chance is known without a measurement where it is so by definition."""
        labels = self.task.labels
        levels = {f"{labels.metrics}.{name}": level for name, level in CHANCE_LEVELS.items() if labels}
        found: dict[str, dict[str, float]] = {CHANCE: levels}
        for baseline, metrics in (at(self.metrics, "baseline") or {}).items():
            known = {name: value for name in self.headline if (value := at(metrics, name)) is not None}
            found[baseline] = found.get(baseline, {}) | known
        return found


@dataclass(frozen=True)
class EvaluationResults:
    """An evaluation's folder. splits: as evaluated, at least one. facts, examples: as in the files of these names.

    confusion: (actual, predicted) of each graded image of the split that is shown, as positions in the labels. live:
    the training's curves. training: its verdict.json; empty where it left none. validation: its metrics.json, likewise.
    """

    folder: Path
    live: Path
    splits: Sequence[SplitResults]
    facts: Mapping[str, Any]
    examples: Mapping[str, Sequence[Row]]
    confusion: Sequence[tuple[int, int]]
    training: Mapping[str, Any]
    validation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_cases(self) -> bool:
        """Whether single images were written, which the case browser shows."""
        return (self.folder / "predictions.parquet").is_file()

    @property
    def shown(self) -> SplitResults:
        """The test split, or the first one where test was not evaluated."""
        return next((split for split in self.splits if split.name == "test"), self.splits[0])

    @property
    def external(self) -> SplitResults | None:
        """The second test set, where there is one."""
        return next((split for split in self.splits if split.name == EXTERNAL), None)


def read_results(folder: Path, live: Path) -> EvaluationResults:
    """Read an evaluation's folder. Only metrics.json must be there.

    Raises:
        UserError: it is not.
    """
    metrics = read_json(folder / "metrics.json")
    if not metrics:
        raise UserError(f"{folder / 'metrics.json'} does not exist; run the evaluate stage first: dvc repro evaluate")
    tables = {path.stem: _read_table(path) for path in sorted((folder / "tables").glob("*.csv"))}
    facts, examples = read_json(folder / "facts.json"), read_json(folder / "examples.json")
    task = saved_task(facts.get("params", {}))
    splits = [
        SplitResults(
            name,
            task,
            figures,
            {table: [row for row in rows if row["split"] == name] for table, rows in tables.items()},
        )
        for name, figures in metrics.items()
    ]
    confusion = [
        (task.labels.position(row["actual"]), task.labels.position(row["predicted"]))
        for row in _read_table(folder / "plots" / "confusion.csv")
    ]
    training = read_json(live.with_name("verdict.json"))
    return EvaluationResults(folder, live, splits, facts, examples, confusion, training)


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Rows with numbers as numbers and None for an empty cell; no rows where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: as_meant(cell) if name in WORDS else _value(as_meant(cell)) for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def _value(cell: str) -> bool | int | float | str | None:
    if cell == "":
        return None
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
