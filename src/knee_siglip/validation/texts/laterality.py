"""Does an impression speak of the other knee than the column `side`?

Conservative: a text is only held against its row where it names exactly one side, names it as the knee's, and that is
the other one. "Both knees", "compared with the left knee", "left-handed" and "left in place" accuse nobody.
"""

import re

import pandas as pd

from knee_siglip.validation.issue import Issue
from knee_siglip.validation.row_issues import issues_of_rows
from knee_siglip.validation.texts.plain_text import plain

SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
NOT_ONE_SIDE = {"", "both", "bilateral", "b"}
VALUES_NAMED = 5

ANATOMY = (
    r"(?:knee|joint|genu|tibia|tibial|femur|femoral|fibula|fibular|patella|patellar|patellofemoral|tibiofemoral|"
    r"femorotibial|meniscus|compartment|leg|limb|lower extremity|tka|tkr|gonarthrosis)"
)

NO_SIDE = re.compile(
    r"\b(?:left|right)[- ]?(?:hand(?:ed)?|foot(?:ed)?)\b"
    r"|\b(?:was|were|be|been|being|is|are) left\b(?![- ](?:knee|sided))"
    r"|\bleft (?:in (?:place|situ)|as is|alone|behind|out|over|open|intact|untreated|unremarkable|unchanged)\b"
    r"|\bright (?:away|angled?|after|now)\b"
)
"""Where the words are no sides."""

BOTH = re.compile(r"\b(?:both|bilateral(?:ly)?|b/l|each|either|knees|contralateral|opposite|other (?:knee|side))\b")

SIDE_WORD = re.compile(r"\b(left|right|lt|rt)\b|\b([lr])(?=\.? knee\b)|\bknee[ ,(:-]+([lr])\b")

COMPARED = re.compile(
    r"\b(?:compar(?:e|ed|ing|ison|able)|relative|similar|identical|opposed|contrast\w*|unlike|than|versus|vs)\b\.?"
    r"(?: (?:with|to|in|on|for|that|those|of|the|prior|previous|earlier|study|radiographs?)){0,6}"
    r" (?:left|right|lt|rt)\b(?: (?:knee|side|joint))*"
)

KNEE_SIDE = (
    re.compile(rf"\b(?:left|right|lt|rt)\b\.?(?:[- ]?sided)?(?:[ -]\w+){{0,3}}?[ -]{ANATOMY}\b"),
    re.compile(rf"\b{ANATOMY}[ ,(:-]{{1,3}}(?:on the |of the )?(?:left|right|lt|rt)\b"),
    re.compile(r"\b[lr]\.? knee\b|\bknee[ ,(:-]+[lr]\b"),
    re.compile(r"^\W*(?:left|right|lt|rt) ?[:.,;(-]"),
    re.compile(r"[,(-] ?(?:left|right|lt|rt)\)?\W*$|\bof the (?:left|right)\W*$"),
    re.compile(r"\b(?:left|right)[- ]sided\b"),
)
"""A side said of the knee: before or after the anatomy, or as the text's heading or last word."""


def side_in_text(text: str) -> str | None:
    """`left` or `right` where the text names that side alone, and as the knee's; otherwise None."""
    words = NO_SIDE.sub(" ", plain(text))
    if BOTH.search(words):
        return None
    named = {SIDES["".join(match)] for match in SIDE_WORD.findall(words)}
    if len(named) != 1:
        return None
    own = COMPARED.sub(" ", words)
    return named.pop() if any(pattern.search(own) for pattern in KNEE_SIDE) else None


def check_side(table: pd.DataFrame) -> list[Issue]:
    """Warnings for texts that name only the other side, and one for values of `side` that are none.

    A warning, not an error: which of the two is wrong is not known here, and one text may stand for a two-sided study.
    """
    if "side" not in table.columns:
        return []
    given = table["side"].str.strip().str.lower()
    said = table["impression"].map({text: side_in_text(text) for text in table["impression"].unique()})
    other = said.notna() & given.isin(list(SIDES)) & (said != given.map(SIDES))
    messages = {
        int(row): f"side is {SIDES[side]!r}, but the impression names only the {text} knee; one of the two is wrong"
        for row, side, text in zip(table.index[other], given[other], said[other], strict=True)
    }
    return [
        *_unknown_sides(given),
        *issues_of_rows(table, "side_contradiction", messages, "name only the other knee than the column side"),
    ]


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
