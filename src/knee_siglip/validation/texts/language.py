"""Impressions in other scripts and languages: the text encoders were trained on English.

Scripts are counted by letter; languages in Latin script are told by py3langid (Lui and Baldwin 2012).
"""

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from knee_siglip.validation.issue import Issue, issues_of_texts

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

FOREIGN_SHARE = 0.1
FOREIGN_LETTERS = 2
"""More letters and a larger share than this in another script: a single Greek letter is a symbol."""

TIMES_LIKELIER = 40
"""A text is foreign where another language is so many times likelier than English: anatomy is half Latin, and "Patella
alta, bipartite patella" reaches 25. Measured by benchmarks/libraries.py with py3langid 0.4, which scales by length."""

CHARACTERS_JUDGED = 300
"""The beginning of a text; judging takes microseconds per character."""

EPONYMS = ("ahlbäck",)
"""Names in English impressions whose foreign letters would decide."""

LANGUAGES = {"ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "es": "Spanish", "fi": "Finnish"}
LANGUAGES |= {"fr": "French", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch"}
LANGUAGES |= {"no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "sk": "Slovak", "sv": "Swedish"}
LANGUAGES |= {"tr": "Turkish", "vi": "Vietnamese"}


def check_language(table: pd.DataFrame) -> list[Issue]:
    """Warnings for texts in another script, or in Latin script and another language."""
    return [
        *issues_of_texts(table, "foreign_script", _script_message, "are not written in Latin script"),
        *issues_of_texts(table, "foreign_language", _language_message, "seem to be in another language than English"),
    ]


def foreign_script(text: str) -> tuple[str, float] | None:
    """The script that most of a text's non-Latin letters are in, and the share (0-1) of such letters."""
    if text.isascii():
        return None
    scripts = [_script(char) for char in text if char.isalpha()]
    foreign = [script for script in scripts if script != "LATIN"]
    if len(foreign) < FOREIGN_LETTERS or len(foreign) <= FOREIGN_SHARE * len(scripts):
        return None
    return max(sorted(set(foreign)), key=foreign.count), len(foreign) / len(scripts)


def foreign_language(text: str) -> str | None:
    """The likeliest language of a text that is hardly English; None where it may be."""
    text = text[:CHARACTERS_JUDGED].lower()
    for eponym in EPONYMS:
        text = text.replace(eponym, "")
    ranked = _identifier().rank(text)
    best, likelihood = ranked[0]
    if best == "en" or likelihood < TIMES_LIKELIER * dict(ranked)["en"]:
        return None
    return LANGUAGES[best]


def _script_message(text: str) -> str | None:
    if not (found := foreign_script(text)):
        return None
    script, share = found
    return f"{share:.0%} of the letters are not Latin but {script.title()}; the text encoder knows English: translate"


def _language_message(text: str) -> str | None:
    if not (language := foreign_language(text)):
        return None
    return f"the impression seems to be {language}; the text encoder knows English: translate"


@cache
def _script(char: str) -> str:
    """First word of the character's Unicode name: LATIN, CYRILLIC, CJK, GREEK; modifier letters count as Latin."""
    name = unicodedata.name(char, "UNKNOWN").split()[0]
    return "LATIN" if name in {"LATIN", "FULLWIDTH", "MODIFIER", "FEMININE", "MASCULINE", "MICRO"} else name


@cache
def _identifier() -> "LanguageIdentifier":
    """Loaded on first use: it takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(["en", *LANGUAGES])
    return identifier
