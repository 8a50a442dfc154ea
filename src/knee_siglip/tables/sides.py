"""Left and right in impressions: the words that name a side, and the text of a mirrored image."""

import re

SIDES = {
    "left": r"left|lt|l|links?|linke[nrs]?|izquierd[ao]s?|esquerd[ao]s?|gauches?",
    "right": r"right|rt|r|rechts?|rechte[nrs]?|derech[ao]s?|direit[ao]s?|droite?s?",
    "both": r"both|bilateral(?:ly|es)?|b/l|beidseits|beide[nrs]?|amb[ao]s|(?:contra|ipsi)lateral|other side|opposite",
}
NAMED = {side: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for side, words in SIDES.items()}

NO_SIDE = (
    r"\b(?:left|right)[- ]?(?:hand(?:ed)?|foot(?:ed)?)\b"
    r"|\bleft (?:in (?:place|situ)|as is|alone|behind|out|over|open|intact|untreated|unremarkable|unchanged)\b"
    r"|\bright (?:away|angled?|after|now)\b"
)
"""Where left and right are no sides: of a lower-case text."""

OPPOSITE = {"left": "right", "lt": "rt", "izquierd": "derech", "esquerd": "direit", "link": "recht"}
OPPOSITE |= {right: left for left, right in OPPOSITE.items()}
EXCHANGED = re.compile(
    r"\b(?:(?:left|right|lt|rt)\b|(?:izquierd|derech|esquerd|direit)(?=[ao]s?\b)|(?:link|recht)(?=(?:s|e[nrs]?)\b))",
    re.IGNORECASE,
)


def exchange_sides(text: str) -> str | None:
    """The text of the mirrored image: left and right exchanged, all else as it is.

    None where that may be wrong: a side in letters or words that are not exchanged (`L knee`, `genou droit`), or in
    another sense (`right angle`, `left in place`).
    """
    rest = EXCHANGED.sub(" ", text)
    if re.search(NO_SIDE, text.lower()) or NAMED["left"].search(rest) or NAMED["right"].search(rest):
        return None
    return EXCHANGED.sub(_opposite, text)


def _opposite(match: re.Match[str]) -> str:
    word = match.group()
    other = OPPOSITE[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
