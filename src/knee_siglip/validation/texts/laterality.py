"""Impressions that name the other side than the column `side`.

Conservative: only a text that names exactly one side, says it of the task's anatomy, and means the other one, gets a
warning. "Both knees", "compared with the left knee", "left-handed" and "left in place" do not.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from knee_siglip.tables.sides import NO_SIDE
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue, issues_of_rows
from knee_siglip.validation.texts.plain_text import plain

SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
NOT_ONE_SIDE = {"", "both", "bilateral", "b"}
VALUES_NAMED = 5


@dataclass(frozen=True)
class Patterns:
    """What tells the side of one anatomy.

    no_side: where left and right are no sides. both: more than one side is meant. word: a side. compared: the side of
    another image. own: a side said of the anatomy, before or after it, or as the text's heading or last word.
    """

    no_side: re.Pattern[str]
    both: re.Pattern[str]
    word: re.Pattern[str]
    compared: re.Pattern[str]
    own: tuple[re.Pattern[str], ...]


@lru_cache(maxsize=1)
def side_patterns(subject: str, anatomy: str) -> Patterns:
    """subject: `knee`. anatomy: regular expression of the words of which a side is said."""
    subject, anatomy = re.escape(subject), f"(?:{anatomy})"
    return Patterns(
        no_side=re.compile(NO_SIDE + rf"|\b(?:was|were|be|been|being|is|are) left\b(?![- ](?:{subject}|sided))"),
        both=re.compile(
            rf"\b(?:both|bilateral(?:ly)?|b/l|each|either|{subject}s|contralateral|opposite|other (?:{subject}|side))\b"
        ),
        word=re.compile(rf"\b(left|right|lt|rt)\b|\b([lr])(?=\.? {subject}\b)|\b{subject}[ ,(:-]+([lr])\b"),
        compared=re.compile(
            r"\b(?:compar(?:e|ed|ing|ison|able)|relative|similar|identical|opposed|contrast\w*|unlike|than|versus|vs)\b"
            r"\.?(?: (?:with|to|in|on|for|that|those|of|the|prior|previous|earlier|study|radiographs?)){0,6}"
            rf" (?:left|right|lt|rt)\b(?: (?:{subject}|side|joint))*"
        ),
        own=(
            re.compile(rf"\b(?:left|right|lt|rt)\b\.?(?:[- ]?sided)?(?:[ -]\w+){{0,3}}?[ -]{anatomy}\b"),
            re.compile(rf"\b{anatomy}[ ,(:-]{{1,3}}(?:on the |of the )?(?:left|right|lt|rt)\b"),
            re.compile(rf"\b[lr]\.? {subject}\b|\b{subject}[ ,(:-]+[lr]\b"),
            re.compile(r"^\W*(?:left|right|lt|rt) ?[:.,;(-]"),
            re.compile(r"[,(-] ?(?:left|right|lt|rt)\)?\W*$|\bof the (?:left|right)\W*$"),
            re.compile(r"\b(?:left|right)[- ]sided\b"),
        ),
    )


def side_in_text(text: str, patterns: Patterns) -> str | None:
    """`left` or `right` where the text names that side alone, and says it of the anatomy; otherwise None."""
    words = patterns.no_side.sub(" ", plain(text))
    if patterns.both.search(words):
        return None
    named = {SIDES["".join(match)] for match in patterns.word.findall(words)}
    if len(named) != 1:
        return None
    own = patterns.compared.sub(" ", words)
    return named.pop() if any(pattern.search(own) for pattern in patterns.own) else None


def check_side(table: pd.DataFrame, task: Task) -> list[Issue]:
    """Warnings for texts that name only the other side, and one for values of `side` that are none.

    A warning, not an error: which of the two is wrong is not known here, and one text may stand for a two-sided study.
    """
    if "side" not in table.columns or task.side_words is None:
        return []
    patterns = side_patterns(task.subject, task.side_words)
    given = table["side"].str.strip().str.lower()
    said = table["impression"].map({text: side_in_text(text, patterns) for text in table["impression"].unique()})
    other = said.notna() & given.isin(list(SIDES)) & (said != given.map(SIDES))
    subject, wrong = task.subject, "one of the two is wrong"
    messages = {
        int(row): f"side is {SIDES[side]!r}, but the impression names only the {text} {subject}; {wrong}"
        for row, side, text in zip(table.index[other], given[other], said[other], strict=True)
    }
    problem = f"name only the other {subject} than the column side"
    return [*_unknown_sides(given), *issues_of_rows(table, "side_contradiction", messages, problem)]


def _unknown_sides(given: pd.Series) -> list[Issue]:
    unknown = given[~given.isin([*SIDES, *NOT_ONE_SIDE])]
    if unknown.empty:
        return []
    values = [repr(value[:20]) for value in unknown.unique()[:VALUES_NAMED]]
    more = " ..." if unknown.nunique() > VALUES_NAMED else ""
    message = (
        f"side is {', '.join(values)}{more} in {len(unknown):,} rows, the first {unknown.index[0]}: not compared with "
        "the impressions; known are left, right, l, r, both, bilateral or empty"
    )
    return [Issue("warning", "unknown_side", None, "", message)]
