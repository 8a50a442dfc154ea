"""Personal data in impressions, found by pattern. This is no anonymisation: patterns miss some of it.

Found: names after a title, a label or a signature; full dates; telephone numbers, e-mail addresses, social security
numbers; numbers of six and more digits and labelled record numbers; ages over 89 (the limit of HIPAA's safe harbour,
45 CFR 164.514(b)). Missed: a bare name, a place, a month, a rare disease, other scripts.

The issues name kind and place, never the text: issues.csv travels further than the data.
"""

import re

import pandas as pd

from knee_siglip.validation.issue import Issue, issues_of_texts

KINDS_NAMED = 6

NOT_A_NAME = (
    r"(?!(?:Right|Left|Both|Bilateral|Normal|Abnormal|No|None|Not|Severe|Moderate|Mild|Minimal|Doubtful|Knees?|Joint|"
    r"Male|Female|Man|Woman|Adult|Child|Pain|History|Known|Status|Standing|Supine|Weight|Post|The|This|There|Is|Was|"
    r"Has|With|Without|Views?|AP|PA|Lateral|Medial|Osteoarthritis|OA|Fracture|Effusion|Unknown|Signed|Reviewed|Read|Anonymous|"
    r"Anonymi[sz]ed|Removed|Redacted|Kellgren|Baker|Hoffa|Osgood|Schatzker|Segond|Ahlb[äa]ck|Radiologist|Radiology|Consultant|Attending|Resident|Physician|Doctor)\b)"
)
WORD = rf"{NOT_A_NAME}[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]+(?:[-'’][A-ZÀ-ÖØ-Þ]?[a-zß-öø-ÿ]+)*"
INITIAL = r"[A-ZÀ-ÖØ-Þ]\."
NAME = rf"(?:{INITIAL} ?){{0,2}}{WORD}"
MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
DAY, YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d\d"
OLD = r"(?:9\d|1[0-2]\d)"

PATTERNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("a name", rf"\b(?:Mr|Mrs|Ms|Miss|Mister|Dr|Prof|Herr|Frau)\b\.? +{NAME}"),
        ("a name", rf"\b(?:MR|MRS|MS|DR|PROF)\. +{NOT_A_NAME}[A-Z]{{2,}}\b"),
        ("a name", rf"\b{WORD} {WORD},? (?:MD|M\.D\.|FRCR|MBBS|FRCS)(?!\w)"),
        (
            "a name",
            r"\b(?i:(?:patient(?:'s)?|pt|sur|last|first|family)? ?name|name of patient|referring (?:physician|doctor)|"
            rf"requested by|referred by|reported by|radiologist|physician) ?: *{NAME}",
        ),
        ("a name", rf"\b(?i:patient|pt) ?: *{NAME}(?:,? {NAME}|, ?[A-Z]\b)"),
        (
            "a signature",
            r"\b(?i:(?:signed|dictated|transcribed|verified|approved|reported|read|interpreted|reviewed|discussed"
            rf") (?:off )?(?:by|with) ?:? *)(?:(?i:dr|prof)\.? *)?(?:{NAME}|[A-Z]{{2,4}}\b)",
        ),
        ("an e-mail address", r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63})+"),
        ("a social security number", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
        ("a telephone number", r"(?<![\w.-])(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)"),
        ("a telephone number", r"(?<!\w)\+\d{1,3}[ .(/-]{1,2}\d[\d .()/-]{5,16}\d(?!\w)"),
        (
            "a record number",
            r"\b(?i:mrn|medical record|accession|patient id|pat\.? id|case|nhs|hospital|exam|study|chart|record)"
            r"(?i: ?(?:no|number|nr|id|#)\b\.?)? ?[:#] ?[A-Za-z]{0,4}[- ]?\d[\d -]{2,}\d",
        ),
        ("a long number", r"(?<![\d.,])[A-Za-z]{0,3}\d{6,40}(?![\d.,]\d)"),
        ("a date", rf"(?<![\w/]){DAY}/{DAY}/(?:{YEAR}|\d\d)(?![\w/])"),
        ("a date", rf"(?<![\w.-]){DAY}([.-]){DAY}\1{YEAR}(?!\w)"),
        ("a date", rf"(?<!\d){YEAR}([-/.])(?:0?[1-9]|1[0-2])\1{DAY}(?!\d)"),
        ("a date", rf"(?i)\b{DAY}(?:st|nd|rd|th|\.)?[ -]?(?:of )?{MONTH},?[ -]{YEAR}\b"),
        ("a date", rf"(?i)\b{MONTH} {DAY}(?:st|nd|rd|th)?,? {YEAR}\b"),
        ("an age over 89", rf"(?i)\b{OLD}[ -]?(?:(?:years?|yrs?)\b(?! ?(?:ago|back))|y[/ ]?o\b|y\b)"),
        ("an age over 89", rf"(?i)\baged?:? ?{OLD}\b(?!\.\d)"),
    )
)

HINT = re.compile(
    r"\d\d|\d[. -][A-Za-z]|@|\b(?:Mr|Mrs|Ms|Miss|Mister|Dr|Prof|Herr|Frau|MD|FRCR|MBBS|FRCS|MR|MRS|MS|DR|PROF)\b|M\.D"
    r"|(?i:name|patient|\bpt\b|physician|doctor|radiologist)|\b(?i:by|with) ?:? *[A-ZÀ-ÖØ-Þ]|[a-z] \d(?:st|nd|rd|th)?,"
)
"""In every text that a pattern could match: spares most texts the patterns."""


def personal_data(text: str) -> list[tuple[str, int, int]]:
    """(kind, first character, last character), counted from 1, of everything that looks personal; by place.

    Where two patterns meet, the earlier and longer one is told.
    """
    if not HINT.search(text):
        return []
    found = [(match.start(), -match.end(), kind) for kind, pattern in PATTERNS for match in pattern.finditer(text)]
    places: list[tuple[str, int, int]] = []
    for start, negative_end, kind in sorted(found):
        if not places or start >= places[-1][2]:
            places.append((kind, start + 1, -negative_end))
    return places


def check_personal_data(table: pd.DataFrame) -> list[Issue]:
    """Warnings with kind and place of what looks personal in an impression."""
    return issues_of_texts(table, "personal_data", _message, "hold what looks like personal data")


def _message(text: str) -> str | None:
    if not (places := personal_data(text)):
        return None
    named = ", ".join(f"{kind} (characters {first}-{last})" for kind, first, last in places[:KINDS_NAMED])
    more = f" and {len(places) - KINDS_NAMED} more" if len(places) > KINDS_NAMED else ""
    return f"the impression seems to hold {named}{more}; take it out of the CSV (patterns only: read the rest yourself)"
