"""Tables as the pages show them: words to the left, figures to the right."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Cell = str | Markup
"""Escaped, unless it is markup already."""


@dataclass(frozen=True)
class Table:
    """caption: what the reader must know of it; columns: their titles; rows: as many cells each.

    words: so many columns from the left hold words, the others figures. marked: rows that stand out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class HeatTable:
    """A square of counts, shaded by the share within the row.

    names: of rows and of columns; counts: a row for each name. links: what each cell leads to, in the same shape; none
    where cells lead nowhere.
    """

    caption: str
    corner: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    links: Sequence[Sequence[str]] = ()

    def share(self, row: int, column: int) -> float:
        """Of the row's counts, 0 where it has none."""
        return self.counts[row][column] / max(1, sum(self.counts[row]))
