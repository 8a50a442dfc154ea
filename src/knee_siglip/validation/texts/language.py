"""Is an impression English? The text encoders are: what they never met, they cannot tell apart.

Scripts are counted by letter; languages in Latin script by a few of their commonest words, which English lacks.
"""

import unicodedata
from functools import cache

import pandas as pd

from knee_siglip.validation.issue import Issue
from knee_siglip.validation.row_issues import issues_of_texts

FOREIGN_SHARE = 0.1
FOREIGN_LETTERS = 2
"""More letters and a larger share than this in another script: a single Greek letter is a symbol."""

DISTINCT_WORDS = 2
"""Different words of a language that a text must hold: "de Quervain" is English."""

ENGLISH_WORDS = (
    "the of and with no is are without in at to for or not there this that from joint knee left right normal mild "
    "moderate severe medial lateral fracture effusion changes grade"
)
OTHER_LANGUAGES = {
    "German": "der das und mit ohne kein keine keinen nicht ein eine des dem im bei vom zur knie kniegelenk gelenk "
    "links rechts rechtes linkes beidseits gonarthrose unauffällig leichte schwere mäßige geringe erguss",
    "French": "le les du des et avec sans est une au aux dans pas genou gauche droit gonarthrose modérée sévère légère "
    "épanchement normale",
    "Spanish": "el los las del con sin una por se y derecha izquierda rodilla derecho izquierdo gonartrosis leve grave "
    "moderada severa derrame",
    "Italian": "il lo gli della del di con senza una nel per ginocchio destro sinistro gonartrosi lieve grave "
    "versamento",
    "Portuguese": "do da dos das com sem uma não joelho direito esquerdo gonartrose leve moderada derrame",
    "Dutch": "het een van met zonder geen niet knie rechter linker gonartrose lichte ernstige matige",
}
ENGLISH = frozenset(ENGLISH_WORDS.split())
VOCABULARIES = {language: frozenset(words.split()) for language, words in OTHER_LANGUAGES.items()}


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
    """The language of which a text holds more common words than of English; None where it seems English."""
    words = set("".join(char if char.isalpha() else " " for char in text.lower()).split())
    hits = {language: len(words & vocabulary) for language, vocabulary in VOCABULARIES.items()}
    language = max(hits, key=lambda name: hits[name])
    if hits[language] >= DISTINCT_WORDS and hits[language] > len(words & ENGLISH):
        return language
    return None


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
