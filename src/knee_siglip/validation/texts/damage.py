"""Texts damaged by a wrong encoding or a copied page; messages quote the damaged characters only."""

import re
from collections.abc import Callable

import pandas as pd

from knee_siglip.validation.issue import Issue, issues_of_texts

QUOTED = 12

CONTINUATION = r"[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
MOJIBAKE = re.compile(
    rf"[ÂÃ]{CONTINUATION}|â(?:€{CONTINUATION}|\x80[\x80-\xbf]|‰{CONTINUATION})|ï»¿|ï¿½|(?:[ÐÑ]{CONTINUATION}){{2,}}"
)
"""Two and more bytes of UTF-8 that were read as Windows-1252 or Latin-1, limited to what no Latin language writes."""

HIGH, FIRST_BYTES = r"\x80-\xff‚ƒ†‡ˆ‰‹Œ•œŸ", r"‚ƒ†‡ˆ‰‹Œ•\x81-\x9f"
OTHER_CODE_PAGE = re.compile(
    r"[À-ÖØ-öø-ÿ]{4,}"  # Cyrillic, Greek, Hebrew: every letter is an accented one
    rf"|(?=[À-ÿ]{{0,2}}[¡-¿×÷ƒ†‡ˆ‰‹Œ•\x80-\x9f])[{HIGH}]{{3,}}"  # Chinese, Korean: with symbols among them
    rf"|(?:[{FIRST_BYTES}][@-~¡-ÿ{FIRST_BYTES}]){{2,}}"  # Japanese: the second byte may be an ASCII letter
    r"|(?<=[A-Za-zà-ÿ])[¹³¿¼¾¶±¯£¥](?=[A-Za-zà-ÿ])"  # Polish: symbols inside words
    r"|[øìèùò][áíéýúšž]|[áíéýúšž][øìèùò]"  # Czech and Slovak: grave beside acute
)
"""Windows-1250, 1251, 1253, 1255, KOI8-R, GBK, EUC-KR and Shift-JIS that were read as Latin-1 or Windows-1252, as far
as the result is in no language. Not found: a text whose foreign letters became others of Latin-1 (Turkish, Hungarian).
"""

REPLACEMENT = re.compile("\ufffd")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f]")
"""Zero-width characters, byte order marks, direction marks and tags; not the soft hyphen, which hides nothing."""

ENTITY = re.compile(
    r"&(?:amp|lt|gt|nbsp|quot|apos|deg|plusmn|ndash|mdash|[rl][sd]quo|[a-zA-Z]uml|#\d{1,7}|#x[0-9a-fA-F]{1,6});"
)
MARKUP = re.compile(r"\{\\rtf\d|\\(?:par|pard|fs\d+|tab)\b|</?[a-zA-Z][^<>]{0,200}>|<!--")
ESCAPE = re.compile(r"\\(?:[nrt](?![a-z])|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")

CHECKS: tuple[tuple[str, re.Pattern[str], str, str], ...] = (
    ("mojibake", MOJIBAKE, "are UTF-8 that was read in another encoding", "export the text again, as UTF-8"),
    (
        "other_code_page",
        OTHER_CODE_PAGE,
        "are of another code page (such as Windows-1251, 1250, GBK or Shift-JIS) that was read as Latin-1",
        "export the text again, as UTF-8",
    ),
    (
        "replacement_character",
        REPLACEMENT,
        "stand where a character was lost",
        "it cannot be brought back here: export the text again, as UTF-8",
    ),
    ("control_character", CONTROL, "are control characters, which normalisation removes", "remove them"),
    (
        "invisible_character",
        INVISIBLE,
        "cannot be seen and are removed, so that words may grow together",
        "replace them by a space or nothing",
    ),
    ("html_entity", ENTITY, "are HTML entities, of which the name would be read as a word", "unescape them"),
    ("markup", MARKUP, "are markup, not text", "export the impressions as plain text"),
    ("escape_sequence", ESCAPE, "are escape sequences that were written out", "replace them by what they stand for"),
)
"""Check, pattern, what is wrong, what to do."""


def check_damage(table: pd.DataFrame) -> list[Issue]:
    """Warnings, one check per kind of damage. Reading has already removed line ends and the file's byte order mark."""
    issues = []
    for check, pattern, wrong, mend in CHECKS:
        problem = f"hold characters that {wrong}; {mend}"
        issues += issues_of_texts(table, check, _judge(pattern, wrong, mend), problem)
    return issues


def _judge(pattern: re.Pattern[str], wrong: str, mend: str) -> Callable[[str], str | None]:
    def judge(text: str) -> str | None:
        found = [(match.start() + 1, match[0]) for match in pattern.finditer(text)]
        if not found or (pattern is OTHER_CODE_PAGE and MOJIBAKE.search(text)):  # then it was UTF-8
            return None
        place, characters = found[0][0], found[0][1][:QUOTED]
        shown = repr(characters) if characters.isprintable() else ascii(characters)
        if pattern is MARKUP:  # a tag may hold anything
            shown = "what stands"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{shown} at character {place}{more} {wrong}; {mend}"

    return judge
