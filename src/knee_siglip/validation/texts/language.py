"""Impressions in other scripts and languages: the text encoders were trained on English.

Scripts are counted by letter; languages in Latin script are told by py3langid (Lui and Baldwin 2012).
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from knee_siglip.task import knee
from knee_siglip.validation.issue import Issue, issues_of_texts
from knee_siglip.validation.texts.tokens import Tokens

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

FOREIGN_SHARE = 0.1
FOREIGN_LETTERS = 2
"""More letters and a larger share than this in another script: a single Greek letter is a symbol."""

TIMES_LIKELIER = 40
"""A text is foreign where another language is so many times likelier than English: anatomy is half Latin, and "Patella
alta, bipartite patella" reaches 25. Measured by benchmarks/libraries.py with py3langid 0.4, which scales by length."""

CORPUS_TIMES_LIKELIER, CORPUS_FROM, CORPUS_TEXTS = 3, 20, 300
"""All texts together are foreign where another language is so many times likelier, if there are so many distinct ones
(fewer: `TIMES_LIKELIER`); judged are the first ones. Of 200 draws of 20 English impressions none was suspected, of 20
of four other languages and of stemmed Spanish all (docs/decisions.md)."""

MULTILINGUAL = "google/siglip-base-patch16-256-multilingual"

CHARACTERS_JUDGED = 300
"""The beginning of a text; judging takes microseconds per character."""

FEWEST_TEXTS = 5

ENGLISH = [text for prompts in knee.KL_PROMPTS.values() for text in prompts]
"""English impressions, to compare with what a tokenizer makes of others."""

EPONYMS = ("ahlbäck",)
"""Names in English impressions whose foreign letters would decide."""

LANGUAGES = {"ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "es": "Spanish", "fi": "Finnish"}
LANGUAGES |= {"fr": "French", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch"}
LANGUAGES |= {"no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "sk": "Slovak", "sv": "Swedish"}
LANGUAGES |= {"tr": "Turkish", "vi": "Vietnamese"}


def check_language(table: pd.DataFrame, tokens: Tokens | None = None, prompts: Sequence[str] = ()) -> list[Issue]:
    """Warnings for texts in another script, or in Latin script and another language; one if that is so of all together.

    tokens: what the tokenizer makes of them is told beside what it makes of English. prompts: the task's; whether they
    are in the language of the texts is told.
    """
    texts = list(table["impression"].unique())
    if (spoken := corpus_language(texts)) is not None:
        made = "" if tokens is None else f" {tokens.compared(table['text'], ENGLISH)};"
        message = (
            f"the impressions, judged together, seem to be in {spoken}; the text encoder knows English:{made} "
            f"translate them, or take a multilingual encoder (model.text: {MULTILINGUAL})"
        )
        if prompts and corpus_language(prompts) is None:
            message += (
                f"; the task's prompts are English: no grade and no finding is asked for in {spoken} before its file "
                "says them so (docs/another-task.md)"
            )
        return [Issue("warning", "foreign_corpus", None, "", message)]
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


def corpus_language(texts: Sequence[str]) -> str | None:
    """The likeliest language, or script, of distinct texts together; None where it may be English, or there are few.

    A sentence of a few anatomical words may be in any language, a hundred of them are not. English among them does not
    hide the others as long as it is the smaller part.
    """
    known = [text[:CHARACTERS_JUDGED] for text in texts if text.strip()][:CORPUS_TEXTS]
    if len(known) < FEWEST_TEXTS:
        return None
    scripts = [found[0] for text in known if (found := foreign_script(text))]
    if len(scripts) > len(known) / 2:
        return f"{max(sorted(set(scripts)), key=scripts.count).title()} script"
    return _foreign(" ".join(known), CORPUS_TIMES_LIKELIER if len(known) >= CORPUS_FROM else TIMES_LIKELIER)


def foreign_language(text: str) -> str | None:
    """The likeliest language of a text that is hardly English; None where it may be."""
    return _foreign(text[:CHARACTERS_JUDGED], TIMES_LIKELIER)


def _foreign(text: str, times_likelier: float) -> str | None:
    text = text.lower()
    for eponym in EPONYMS:
        text = text.replace(eponym, "")
    ranked = _identifier().rank(text)
    best, likelihood = ranked[0]
    if best == "en" or likelihood < times_likelier * dict(ranked)["en"]:
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
