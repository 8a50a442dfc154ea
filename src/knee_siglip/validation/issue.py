"""What validation says: one sentence per thing that is wrong, with its row and file."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "dropped"]


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
