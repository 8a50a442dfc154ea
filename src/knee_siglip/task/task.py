"""What is asked of the images: labels and findings, their prompts, and their names."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self


@dataclass(frozen=True)
class Labels:
    """A column of grades, one per image.

    values: as the column writes them, in order of severity; empty where images have no grades. Inside the package a
    grade is its position in `values`, -1 where there is none.
    """

    column: str
    values: tuple[str, ...]

    @classmethod
    def of_predictions(cls, columns: Iterable[str]) -> Self:
        """The labels that a table of predictions is about, by the names of its columns."""
        names = list(columns)
        for name in names:
            found = cls(name.removesuffix("_predicted"), ())
            if name == found.predicted:
                start = f"{found.probability}_"
                if values := tuple(other.removeprefix(start) for other in names if other.startswith(start)):
                    return cls(found.column, values)
        return cls("", ())

    def __len__(self) -> int:
        return len(self.values)

    @property
    def prefix(self) -> str:
        """Begins the names of columns and metrics: `kl` for `kl_grade`."""
        return self.column.removesuffix("_grade")

    @property
    def metrics(self) -> str:
        """Family of the zero-shot metrics: `zero_shot_kl`."""
        return f"zero_shot_{self.prefix}"

    @property
    def predicted(self) -> str:
        """Column of the predicted label: `kl_grade_predicted`."""
        return f"{self.column}_predicted"

    @property
    def probability(self) -> str:
        """Column of that label's probability; with `_<label>`, of each label's."""
        return f"{self.prefix}_probability"

    @property
    def probabilities(self) -> list[str]:
        """Columns of every label's probability: `kl_probability_0` ..."""
        return [f"{self.probability}_{value}" for value in self.values]

    @property
    def scores(self) -> list[str]:
        """Columns of how well an image fits every label's prompts: `kl_score_0` ..."""
        return [f"{self.prefix}_score_{value}" for value in self.values]

    @cached_property
    def are_numbers(self) -> bool:
        """Whether every label is a whole number."""
        return all(value.isdecimal() for value in self.values)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {value: position for position, value in enumerate(self.values)}

    def position(self, cell: object) -> int:
        """Position of a cell's label, -1 if it has none. `3.0`, as pandas writes a column with gaps, is 3."""
        text = str(cell).strip()
        if text not in self._positions and self.are_numbers:
            with suppress(ValueError):
                number = float(text)
                text = str(int(number)) if number.is_integer() else ""
        return self._positions.get(text, -1)

    def positions(self, cells: Iterable[object]) -> list[int]:
        """Position of each cell's label."""
        return [self.position(cell) for cell in cells]

    def cell(self, position: int) -> int | str:
        """The label at a position, as tables hold it: a number where all labels are."""
        value = self.values[position]
        return int(value) if self.are_numbers else value


@dataclass(frozen=True)
class Positive:
    """The yes-or-no question behind the labels: at least this grade?

    name: in metrics (`oa`); title: in sentences (`osteoarthritis`); lowest: position of the first positive label.
    """

    name: str
    title: str
    lowest: int


@dataclass(frozen=True)
class Finding:
    """A zero-shot finding: prompts for and against it, and its ground truth, `column` or `text`.

    text: regular expression that the impression matches if the finding is present.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    column: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Task:
    """One anatomical question, such as osteoarthritis of the knee. C labels, in order of severity.

    subject: what an image shows (`knee`). label_title and label_short name the grade. label_words: (C,) a word for each
    label. label_prompts: (C,) the texts that stand for each. label_patterns: `kellgren-lawrence`, or
    label to the regular expression by which an impression names it. side_words: regular expression of the anatomy that
    has a left and a right; None: no sides. normal: a text for an image without findings. queries: the default texts.
    """

    subject: str
    labels: Labels
    label_title: str = "grade"
    label_short: str = "grade"
    label_words: Sequence[str] = ()
    label_prompts: Sequence[Sequence[str]] = ()
    label_patterns: Mapping[str, str] | str = field(default_factory=dict)
    positive: Positive | None = None
    findings: Mapping[str, Finding] = field(default_factory=dict)
    side_words: str | None = None
    normal: str = "Normal."
    queries: Sequence[str] = ()
