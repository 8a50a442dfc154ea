"""Kellgren-Lawrence grades of a knee that an impression names.

Three kinds of evidence; a weaker one only counts if a stronger is missing: a grade by number ("KL 2-3", "grade III
osteoarthritis"), osteoarthritis with a severity or its absence ("mild OA", "normal knee"), single signs ("bone on
bone"). All grades that a text names are allowed, so two compartments or an earlier study raise no warning. A number
must be the column's; words may be one grade off, by which two readers commonly differ.
"""

import re

from knee_siglip.validation.texts.plain_text import plain

HIGHEST = 4
NUMERALS = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "i": 1, "ii": 2, "iii": 3, "iv": 4}

NUMBER = r"(?:[0-4]|iv|iii|ii|i)(?!\w)"
NUMBERS = (
    rf"(?P<compare>>=|<=|≥|≤|>|<|at least|at most|up to|more than|less than)? ?(?P<first>{NUMBER})(?P<half>\.5)?"
    rf"(?!\.\d)(?: ?(?:-|/|to|or|and) ?(?:grade )?(?P<last>{NUMBER}))?"
)
SCALE = r"\b(?:kellgren(?:[ -]*(?:and|&|/)?[ -]*lawrence)?(?: \(k[-/]?l\))?|k[-/]?lg?(?=[\W\d]))"
OTHER_SCALE = r"(?P<other>\b(?:ahlb(?:a|ä|ae)ck|outerbridge|iwano|icrs|oarsi|brandt)\b[ :-]*)?"
DISEASE = (
    r"(?:oa|(?:gon)?arthrosis|osteoarthr(?:itis|osis)|osteoarthritic changes?|djd|"
    r"degenerative (?:joint )?(?:changes?|disease|arthritis|arthrosis)|degeneration)\b"
)
PLACE = (
    r"(?:(?:medial|lateral|tri-?compartmental|bi-?compartmental|uni-?compartmental|compartment|compartmental|"
    r"patello-?femoral|femoro-?tibial|tibio-?femoral|knee|joint|left|right|bilateral|both|primary|secondary|diffuse|"
    r"radiographic|early|of|the|and|in)[ ,/-]+)"
)

BY_NUMBER = (
    re.compile(
        rf"{SCALE}[ :=,(-]*(?:(?:classification|scale|system)[ :=,(-]*)?"
        rf"(?:(?:grading|grade|score|stage|class|type|gr)\b\.?)?[ :=,(-]*(?:(?:of|is) )?{NUMBERS}"
    ),
    re.compile(rf"{OTHER_SCALE}\b(?:grade|stage) {NUMBERS} (?:\(?(?:{SCALE})|{PLACE}{{0,4}}{DISEASE})"),
)

SEVERITY = {
    **dict.fromkeys(("doubtful", "questionable", "equivocal", "borderline"), 1),
    **dict.fromkeys(("minimal", "mild", "slight", "minor", "early", "incipient"), 2),
    **dict.fromkeys(("moderate", "moderately", "moderately severe"), 3),
    **dict.fromkeys(("severe", "severely", "marked", "advanced", "gross", "pronounced", "extensive"), 4),
    **dict.fromkeys(("end-stage", "end stage"), 4),
}
DEGREE = rf"(?:{'|'.join(sorted(SEVERITY, key=len, reverse=True))})\b"
DEGREES = rf"(?P<low>{DEGREE})(?:(?:[ -]to[ -]|[-/]| and | or )(?P<high>{DEGREE}))?"

WITH_DEGREE = (
    re.compile(rf"\b{DEGREES}[ ,/-]+{PLACE}{{0,6}}{DISEASE}"),
    re.compile(rf"\b{DISEASE}(?:,| is| are|:| \()[ ]?(?:of )?{DEGREES}"),
)
NO_DISEASE = re.compile(
    r"\b(?:no|without|absence of|free of|negative for)"
    rf"(?: (?:radiographic|radiological|convincing|definite|evidence|features?|signs?|of|any|the|visible|obvious))*"
    rf" {DISEASE}"
    r"|(?<!otherwise )(?<!near )(?<!nearly )(?<!not )\b(?:normal|unremarkable) (?:(?:left|right) )?knee(?: joint)?"
    r"(?: (?:radiographs?|x-rays?|study|examination))?(?=\W*(?:$|[.;]))"
    r"|\b(?:left|right|the)? ?knee(?: joint)? (?:is |appears )?(?:normal|unremarkable)(?=\W*(?:$|[.;]))"
    r"|\bno (?:significant |radiographic )?(?:(?:bony|osseous) )?abnormality"
    r"(?: of (?:the )?(?:(?:left|right) )?knee(?: joint)?)?(?: is)?(?: seen| identified| detected)?(?=\W*(?:$|[.;]))"
)
SIGNS = (
    (re.compile(r"\b(?:doubtful|questionable|possible) (?:joint space narrowing|osteophyt)"), 1, 1),
    (re.compile(r"\bdefinite osteophyt"), 2, HIGHEST),
    (re.compile(r"\bdefinite joint space narrowing"), 3, 3),
    (re.compile(r"\bbone[ -]on[ -]bone\b|\bbone end deformity|\b(?:marked|severe) joint space narrowing"), 4, 4),
)
NEGATED = re.compile(
    r"\b(?:no|not|without|nor|exclude|rule out|r/o)(?: (?:evidence|signs?|of|definite|any|features?))* $"
)
LOOK_BACK = 40

Grades = frozenset[int]


def grades_in_text(text: str) -> tuple[str, Grades] | None:
    """The words that name a grade, and every grade (0-4) they allow; None if no grade is named."""
    words = plain(text)
    for kind in (_by_number, _by_degree, _by_sign):
        if found := kind(words):
            phrases = dict.fromkeys(phrase for phrase, _ in found)
            return ", ".join(phrases), frozenset().union(*(grades for _, grades in found))
    return None


def _by_number(words: str) -> list[tuple[str, Grades]]:
    found = []
    for pattern in BY_NUMBER:
        for match in pattern.finditer(words):
            if not match.groupdict().get("other") and not is_negated(words, match) and (grades := _numbered(match)):
                found.append((match[0], grades))
    return found


def _numbered(match: re.Match[str]) -> Grades:
    """Grades of a number, a range, or a bound; none for "KL > 4"."""
    first = NUMERALS[match["first"]]
    last = NUMERALS[match["last"]] if match["last"] else first + bool(match["half"])
    low, high = min(first, last), max(first, last)
    bounds = {
        **dict.fromkeys((">=", "≥", "at least"), (low, HIGHEST)),
        **dict.fromkeys(("<=", "≤", "at most", "up to"), (0, high)),
        **dict.fromkeys((">", "more than"), (low + 1, HIGHEST)),
        **dict.fromkeys(("<", "less than"), (0, high - 1)),
    }
    low, high = bounds.get(match["compare"], (low, high))
    return frozenset(range(low, high + 1))


def _by_degree(words: str) -> list[tuple[str, Grades]]:
    found = [(match[0], _around(0, 0)) for match in NO_DISEASE.finditer(words)]
    for pattern in WITH_DEGREE:
        for match in pattern.finditer(words):
            if not is_negated(words, match):
                ends = sorted((SEVERITY[match["low"]], SEVERITY[match["high"] or match["low"]]))
                found.append((match[0], _around(*ends)))
    return found


def _by_sign(words: str) -> list[tuple[str, Grades]]:
    return [
        (match[0], _around(low, high))
        for pattern, low, high in SIGNS
        for match in pattern.finditer(words)
        if not is_negated(words, match)
    ]


def _around(low: int, high: int) -> Grades:
    """The grades, and one more to either side."""
    return frozenset(range(max(low - 1, 0), min(high + 1, HIGHEST) + 1))


def is_negated(words: str, match: re.Match[str]) -> bool:
    """Whether the words right before the match say that it is not so."""
    return NEGATED.search(words[max(match.start() - LOOK_BACK, 0) : match.start()]) is not None
