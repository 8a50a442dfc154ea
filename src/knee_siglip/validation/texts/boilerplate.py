"""Missing impressions, and impressions that say nothing about what the image shows."""

import re
from collections.abc import Set
from functools import lru_cache, partial

import pandas as pd

from knee_siglip.tables.text import normalise_text
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue, issues_of_rows, issues_of_texts

QUOTED = 30

MISSING = frozenset(
    {"nan", "none", "null", "nil", "na", "n a", "nat", "undefined", "missing", "empty", "unknown", "tbd", "todo"}
    | {"not available", "not applicable", "not given", "no text", "no impression", "no report", "lorem ipsum"}
    | {"fracture n a", "fracture ref", "fracture value", "fracture name", "fracture null", "fracture div 0"}
)
"""Normalised texts that stand where one is missing; a spreadsheet's `#N/A` normalises to "fracture n a"."""

REFERRAL = re.compile(
    r"(?:please )?(?:see|refer to) (?:the )?(?:(?:body of (?:the )?|full )?report|above|below|findings|comments?)"
    r"(?: above| below)?"
    r"|(?:findings )?as (?:described |stated |dictated )?(?:above|below|before|described|dictated|stated)"
    r"|same(?: as above)?|dictated|pending|(?:report )?to follow|final|preliminary(?: report)?|unchanged|no change"
)
"""Whole normalised texts that send the reader elsewhere."""

UNSAID = r"(?: (?:is |are )?(?:none|nil|not available|not given|unavailable|na|n a|unknown))?"
VIEW = (
    r"(?:one|two|three|four|[1-4]|ap|pa|and|lateral|frontal|oblique|standing|weight bearing|skyline|sunrise|merchant)"
)
GENERAL = (
    r"(?:electronically |digitally )?(?:signed|dictated|transcribed|verified|approved|finali[sz]ed|reviewed)"
    r"(?: (?:off|by|on|electronically|and)\b.*)?"
    r"|(?:clinical|clinico radiological|further)? ?(?:correlation|evaluation|follow ?up)(?: is)?"
    r" (?:recommended|advised|suggested|needed|required|indicated)(?: (?:if|as|when|where|clinically)\b.*)?"
    r"|(?:please|recommend|advise|suggest)? ?(?:clinical correlation|correlate)(?: clinically| with clinical.*)?"
    rf"|(?:comparison|indication|history|technique|clinical information|exam|examination|views?){UNSAID}"
    r"|no (?:(?:prior|previous|earlier|relevant) )*(?:(?:studies|study|films?|radiographs?|examinations?|imaging) )?"
    r"(?:(?:is |are )?available )?for comparison"
    r"|end of (?:report|impression|document)|impression|findings|conclusion|report|thank you(?: for .*)?"
)
"""Whole normalised sentences that say nothing about any image."""

HINT = re.compile(
    r"sign|dictat|transcri|verif|approv|finali|review|correlat|evaluat|follow|compar|indicat|histor|techn|exam|view|"
    r"report|impression|findings|conclusion|thank|ray|radiograph|information",
    re.IGNORECASE,
)
"""In every boilerplate sentence: spares most texts the rest."""

SENTENCE_END = re.compile(r"(?<![.;!?\n\r])[.;!?\n\r]+(?=\s|$)")


@lru_cache(maxsize=1)
def boilerplate(subject: str, has_sides: bool) -> re.Pattern[str]:
    """Whole normalised sentences that say nothing about the subject (`knee`)."""
    place = ("(?:left|right|both) " if has_sides else "") + rf"{re.escape(subject)}s?"
    return re.compile(
        rf"{GENERAL}|(?:{VIEW} )*views?(?: of (?:the )?{place})?"
        rf"|(?:x ?rays?|radiographs?)(?: of)?(?: the)? {place}(?: joints?)?(?: (?:{VIEW}|views?))*"
    )


def check_missing(table: pd.DataFrame) -> list[Issue]:
    """Errors for missing texts; "nan" is an empty cell that went through a program, so it is one."""
    empty = {text for text in table["text"].unique() if not any(char.isalpha() for char in text)}
    placeholder = "stands for a missing text; write the impression, or take the row out"
    return [
        *_refused(table, "empty_text", empty, "holds no words"),
        *_refused(table, "missing_text", MISSING, placeholder),
    ]


def check_boilerplate(table: pd.DataFrame, task: Task) -> list[Issue]:
    """Warnings for texts that say nothing about the image; somebody wrote them, so they are no errors."""
    describe = partial(_boilerplate, task=task)
    return [
        *issues_of_texts(table, "boilerplate_text", describe, f"say nothing about the {task.subject}"),
        *issues_of_texts(table, "referral_text", _referral, "only send the reader elsewhere", column="text"),
    ]


def _refused(table: pd.DataFrame, check: str, texts: Set[str], reason: str) -> list[Issue]:
    """An error for every row whose normalised text is one of `texts`."""
    guilty = table.loc[table["text"].isin(list(texts)), "impression"]
    messages = {}
    for row, impression in guilty.items():
        quoted = ascii(impression) if len(impression) <= QUOTED else f"{impression[:QUOTED]!a}..."
        messages[int(str(row))] = f"impression {quoted} {reason}"
    return issues_of_rows(table, check, messages, reason, "error")


def _boilerplate(text: str, task: Task) -> str | None:
    """Boilerplate is not quoted: signatures are names."""
    if not HINT.search(text):
        return None
    sentences = (sentence for part in SENTENCE_END.split(text) if (sentence := normalise_text(part)))
    if all(boilerplate(task.subject, task.side_words is not None).fullmatch(sentence) for sentence in sentences):
        return f"the impression holds nothing but boilerplate, and nothing about the {task.subject}"
    return None


def _referral(text: str) -> str | None:
    if REFERRAL.fullmatch(text):
        return f"the impression {text!r} only sends the reader elsewhere: nothing can be learnt from it"
    return None
