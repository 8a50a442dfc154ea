"""A user's regular expressions, with a time limit: some take exponential time (`(a|aa)+$`), and `re` has no limit."""

from functools import cache
from typing import Any

import regex

from knee_siglip.core.errors import UserError

SECONDS = 1.0
"""For one pattern in one text. A good pattern takes microseconds."""

PROBES = ("a" * 64 + "!", "0" * 64 + "!", "a " * 64 + "!", "word " * 64 + "!")
"""Texts on which patterns of exponential time are seen at once."""


def check_expression(key: str, pattern: str) -> None:
    """Raise `ValueError`, naming `key`, for a pattern that is wrong or endless."""
    try:
        for probe in PROBES:
            _search(pattern, probe)
    except regex.error as error:
        raise ValueError(f"{key} = {pattern!r} is no regular expression: {error}") from None
    except TimeoutError:
        raise ValueError(
            f"{key} = {pattern!r} takes more than {SECONDS:g} s for a text of {len(probe)} characters; avoid a repeat "
            "inside a repeat, such as (a+)+"
        ) from None


def group_count(pattern: str) -> int:
    """How many groups a good pattern has."""
    return int(_compiled(pattern).groups)


def find_matches(key: str, pattern: str, text: str) -> list[Any]:
    """All matches of a pattern, upper and lower case being equal; each has the methods of `re.Match`.

    Raises:
        UserError: naming `key`, where it takes too long.
    """
    try:
        return _search(pattern, text)
    except TimeoutError:
        raise UserError(
            f"{key} = {pattern!r} takes more than {SECONDS:g} s for an impression of {len(text)} characters; avoid a "
            "repeat inside a repeat, such as (a+)+"
        ) from None


def _search(pattern: str, text: str) -> list[Any]:
    return list(_compiled(pattern).finditer(text, timeout=SECONDS))


@cache
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern, regex.IGNORECASE)
