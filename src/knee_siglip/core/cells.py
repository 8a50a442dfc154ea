"""Texts from outside where others show them: cells for a spreadsheet, characters that steer a terminal or a page."""

import logging
import re
import warnings
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""https://owasp.org/www-community/attacks/CSV_Injection"""

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line end, marks and overrides of the writing direction, lone surrogates."""


FORMAT_WARNING = warnings.formatwarning


def defanged(cell: str) -> str:
    """A text that a spreadsheet would run as a formula, behind an apostrophe; numbers stay. See `as_meant`."""
    if cell.startswith("'"):
        return f"'{cell}"
    if not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def as_meant(cell: str) -> str:
    """The text that `defanged` was given."""
    return cell.removeprefix("'")


def printable(text: str) -> str:
    r"""The text with characters escaped that would steer a terminal or turn the order of letters: ESC becomes \x1b."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def echo(text: str) -> None:
    """A line on stdout, `printable`."""
    print(printable(text), flush=True)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def escape_warnings() -> None:
    """Show what is logged, and Python's warnings, `printable` on stderr."""
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Printable("%(levelname)s: %(message)s"))
    warnings.formatwarning = _printable_warning


def _printable_warning(*facts: Any, **more: Any) -> str:
    return printable(FORMAT_WARNING(*facts, **more))
