"""What an import read, mapped, joined, composed and dropped: on the screen, and beside the CSV."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from knee_siglip.core.files import atomic_text, readable_name
from knee_siglip.importing.columns import IMAGE, ROW, TABLE

SHOWN = 8
"""Lines of a list on the screen and in the Markdown; the JSON holds all."""


@dataclass(frozen=True)
class Mapped:
    """One of our columns: from which column or template, and how that is known."""

    name: str
    source: str
    how: str


@dataclass(frozen=True)
class Join:
    """Another table's columns: by which ids, rows with and without a partner, rows of it that no row asked for."""

    table: str
    keys: str
    matched: int
    unmatched: int
    unused: int


@dataclass
class Outcome:
    """Collected while an import runs.

    dropped: table, row, image and reason of each source row that is no row of the CSV.
    """

    source: str
    layout: str = "none"
    task: str | None = None
    tables: dict[str, int] = field(default_factory=dict)
    columns: list[Mapped] = field(default_factory=list)
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    joins: list[Join] = field(default_factory=list)
    impressions: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    rows: int = 0
    images: int = 0
    unused_images: int = 0
    splits: dict[str, int] = field(default_factory=dict)

    def read(self, table: str, rows: int) -> None:
        """A table was read."""
        self.tables[table] = rows

    def note(self, sentence: str) -> None:
        """A sentence for the user, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def mapped(self, name: str, source: str, how: str) -> None:
        """One of our columns was found."""
        self.columns.append(Mapped(name, source, how))

    def changed(self, name: str, old: pd.Series, new: pd.Series) -> None:
        """Count the values that a column's normalisation changed, as `L -> left`."""
        pairs = Counter(zip(old[old != new], new[old != new], strict=True))
        if pairs:
            self.values[name] = {f"{was} -> {now or '(empty)'}": count for (was, now), count in pairs.most_common()}

    def drop(self, rows: pd.DataFrame, wrong: pd.Series, reason: str) -> pd.DataFrame:
        """The rows without those that are `wrong`, which are remembered with the reason."""
        told = rows.loc[wrong].reindex(columns=[TABLE, ROW, IMAGE]).fillna("")
        self.dropped += [(table, row, image, reason) for table, row, image in told.itertuples(index=False, name=None)]
        return rows[~wrong]

    def reasons(self) -> dict[str, int]:
        """Reason to number of rows dropped for it."""
        return dict(Counter(reason for *_, reason in self.dropped).most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all of it, with dropped rows by reason."""
        whole = asdict(self)
        whole["dropped"] = self.reasons()
        return whole


def side_files(csv_path: Path) -> dict[str, Path]:
    """The report's files beside the CSV `knees.csv`: `knees.import.json`, `.md` and `knees.dropped.csv`."""
    return {
        "json": csv_path.with_name(f"{csv_path.stem}.import.json"),
        "markdown": csv_path.with_name(f"{csv_path.stem}.import.md"),
        "dropped": csv_path.with_name(f"{csv_path.stem}.dropped.csv"),
    }


def write_outcome(outcome: Outcome, csv_path: Path) -> None:
    """Write the report beside the CSV; the list of dropped rows only if there are any."""
    files = side_files(csv_path)
    with atomic_text(files["json"]) as file:
        file.write(json.dumps(outcome.as_dict(), indent=2, ensure_ascii=False) + "\n")
    with atomic_text(files["markdown"]) as file:
        file.write(as_markdown(outcome, csv_path))
    files["dropped"].unlink(missing_ok=True)
    if outcome.dropped:
        with atomic_text(files["dropped"]) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["table", "row", "image", "reason"])
            writer.writerows(outcome.dropped)


def as_markdown(outcome: Outcome, csv_path: Path) -> str:
    """The report as a page of Markdown."""
    lines = [f"# Import of {outcome.source}", "", summary(outcome, csv_path), ""]
    for title, header, rows in sections(outcome):
        lines += [f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
        lines.append("")
    for title, sentences in (("Notes", outcome.notes), ("Next", outcome.next)):
        if sentences:
            lines += [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join(lines)


def summary(outcome: Outcome, csv_path: Path) -> str:
    """One sentence: rows written, rows dropped, images that no row names."""
    count = len(outcome.dropped)
    dropped = f"{count:,} row{'s' * (count != 1)} of the source left out" if count else "nothing left out"
    unused = f"; {outcome.unused_images:,} of {outcome.images:,} images are in no row" if outcome.unused_images else ""
    return f"{outcome.rows:,} rows in {readable_name(csv_path)} (layout: {outcome.layout}); {dropped}{unused}."


def sections(outcome: Outcome) -> Iterator[tuple[str, list[str], list[tuple[Any, ...]]]]:
    """Title, header and rows of each table of the report that has rows."""
    dropped = list(outcome.reasons().items())
    values = [(name, change, count) for name, changes in outcome.values.items() for change, count in changes.items()]
    joins = [(join.table, join.keys, join.matched, join.unmatched, join.unused) for join in outcome.joins]
    tables: list[tuple[str, list[str], list[Any]]] = [
        ("Read", ["table", "rows"], list(outcome.tables.items())),
        ("Columns", ["column", "from", "because"], [(c.name, c.source, c.how) for c in outcome.columns]),
        ("Joined", ["table", "by", "rows with", "rows without", "unused of it"], joins),
        ("Impressions", ["taken from", "rows"], list(outcome.impressions.items())),
        ("Values", ["column", "change", "rows"], values),
        ("Splits", ["split", "rows"], list(outcome.splits.items())),
        ("Dropped", ["reason", "rows"], dropped),
    ]
    yield from ((title, header, rows) for title, header, rows in tables if rows)


def show(outcome: Outcome, csv_path: Path) -> None:
    """Print the report."""
    from rich.table import Column, Table
    from rich.text import Text

    from knee_siglip.core.terminal import Terminal

    console = Terminal()
    for title, header, rows in sections(outcome):
        table = Table(*(Column(name, overflow="fold") for name in header), title=title, title_justify="left")
        for row in rows[:SHOWN]:
            table.add_row(*(Text(_number(cell)) for cell in row))
        if len(rows) > SHOWN:
            table.caption = f"and {len(rows) - SHOWN} more, in {side_files(csv_path)['markdown'].name}"
        console.print(table)
    for sentence in (*outcome.notes, summary(outcome, csv_path), *outcome.next):
        console.print(Text(sentence), soft_wrap=True)


def _number(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _cell(cell: object) -> str:
    return _number(cell).replace("|", "\\|").replace("\n", " ")
