"""Sections of a radiology report, and the impression among them.

Headings are known in English, Spanish, Portuguese, German and French. One counts where it begins with a capital and a
colon follows, or where it stands in capitals on a line of its own; line ends may have become spaces.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Kind = Literal["impression", "conclusion", "summary", "findings", "other"]

LEADING: tuple[Kind, ...] = ("impression", "conclusion", "summary")
"""Sections that hold the reader's answer; the first kind that a report has is its impression."""

HEADINGS: dict[Kind, tuple[str, ...]] = {
    "impression": (
        r"(?:findings(?: (?:and|&) |/))?impressions?(?:(?: and |/)(?:plan|recommendations?))?|final impression",
        r"impresion(?:es)?(?: diagnosticas?| radiologicas?)?",
        r"impress(?:ao|oes)(?: diagnosticas?| radiologicas?)?",
        r"(?:zusammenfassende |radiologische )?beurteilung",
    ),
    "conclusion": (
        r"conclusions?|conclusion(?:es)?|conclus(?:ao|oes)|en conclusion",
        r"interpretation|juicio diagnostico|hipotese diagnostica|opinion|opiniao|opinie|schlussfolgerung",
    ),
    "summary": (r"summary|zusammenfassung|resumen?|resumo|synthese|diagnos(?:is|tico|tic|e)",),
    "findings": (
        r"findings?|narrative|body of report|hallazgos?|achados?|relatorio|analise|befunde?",
        r"resultats?|constatations|description",
    ),
    "other": (
        r"(?:final |preliminary |wet |radiology )?(?:report|read)|end of (?:impression|report)|addendum",
        r"(?:clinical )?(?:indications?|history|information|details)|reason for (?:the )?(?:exam(?:ination)?|study)",
        r"(?:type of )?exam(?:ination)?s?|studies|study|procedures?|techniques?|protocol|views?|comparisons?",
        r"recommendations?(?:\(s\))?|notifications?|accession number|attending|radiologists?|dictated by|signed by",
        r"(?:electronically )?(?:signed|approved|verified)(?: electronically)?(?: by)?|diagnosis codes?",
        r"informe(?: final| radiologico)?|indicacion(?:es)?|motivo(?: de (?:la )?(?:consulta|estudio|exploracion))?",
        r"antecedentes|historia clinica|informacion clinica|datos clinicos|juicio clinico|tecnica|exploracion|estudio",
        r"comparacion|estudio previo|recomendacion(?:es)?|firmado(?: por)?",
        r"laudo(?: final)?|indicac(?:ao|oes)(?: clinicas?)?|historia|informac(?:ao|oes) clinicas?|exame|comparacao",
        r"recomendac(?:ao|oes)|observac(?:ao|oes)|assinado(?: por)?",
        r"klinische (?:angaben|fragestellung|informationen?)|fragestellung|(?:rechtfertigende )?indikation|anamnese",
        r"(?:untersuchungs)?technik|untersuchung|vergleich|voraufnahmen?|voruntersuchung(?:en)?|empfehlung(?:en)?",
        r"compte[- ]rendu|motif|renseignements cliniques|histoire|comparaison|examen|recommandations?",
    ),
}
"""Expressions of headings, in lower case without accents."""

SIGNATURE = re.compile(
    r"\b(?:electronically )?signed (?:electronically )?by\b.*|\bend of (?:impression|report)\b.*",
    re.IGNORECASE | re.DOTALL,
)
"""What may follow the last section's text."""

BOUNDARY = r"(?:^|(?<=[\s.;:*#_>\])]))(?=[A-Z])"
KINDS = "|".join(f"(?P<{kind}>{'|'.join(words)})" for kind, words in HEADINGS.items())
HEADING = re.compile(
    rf"{BOUNDARY}(?i:{KINDS})[*_ \t]*(?:(?P<colon>:)[*_]*|(?=\r?\n|$)|(?:(?<=REPORT)|(?<=FINAL)) )", re.MULTILINE
)
"""A heading in a text without accents: with its colon, alone on a line, or a report's title before others."""


@dataclass(frozen=True)
class ReportSection:
    """A heading's kind, and the text up to the next heading."""

    kind: Kind
    text: str


def sections_of(text: str) -> list[ReportSection]:
    """The sections of a report in their order; empty for a text without headings."""
    text = unicodedata.normalize("NFC", text)
    plain = _without_accents(text)
    found = [match for match in HEADING.finditer(plain) if match["colon"] or _stands_alone(plain, match)]
    starts = [*(match.start() for match in found), len(text)]
    return [
        ReportSection(_kind(match), _trimmed(text[match.end() : end]))
        for match, end in zip(found, starts[1:], strict=True)
    ]


def impression_of(text: str) -> str | None:
    """The impression of a whole report; None for a text without such a section, or with an empty one.

    Several sections of the same kind, as for two knees, are joined. A conclusion or a summary counts where nothing is
    called impression.
    """
    sections = sections_of(text)
    for kind in LEADING:
        if said := " ".join(section.text for section in sections if section.kind == kind and section.text):
            return said
    return None


def is_report(text: str) -> bool:
    """Whether a text has the sections of a whole report: two at least."""
    return len(sections_of(text)) > 1


def _without_accents(text: str) -> str:
    """The same number of characters, letters without their marks: `Impresión` is `Impresion`."""
    return text if text.isascii() else "".join(unicodedata.normalize("NFD", char)[0] for char in text)


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Whether a heading without a colon is in capitals and begins a line, or the text."""
    before = text[: match.start()].rpartition("\n")[2]
    return match[0].isupper() and not before.strip(" \t*_#")


def _kind(match: re.Match[str]) -> Kind:
    return next(kind for kind in HEADINGS if match[kind] is not None)


def _trimmed(text: str) -> str:
    """Without a signature, and on one line."""
    return " ".join(SIGNATURE.sub("", text).split())
