"""Which rows belong together: one key for the spellings of an id, and the independent units that a table holds."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

UNITS = {"patient_id": "patient", "study_id": "study", "image_id": "image"}
"""Columns that tell which rows are one unit, the strongest first."""

UNIT_COUNTS = {
    "patient": "patients",
    "study": "studies_of_unknown_patients",
    "image": "images_of_unknown_patients",
}
"""Kind of unit to the name of its number in metrics.json."""

INVISIBLE = frozenset({"Cf", "Cc", "Cs"})
"""Unicode categories of zero-width characters, byte order marks and controls."""

UNSEEN_ASCII = re.compile(r"[\x00-\x20\x7f]")

DASHES = re.compile("[‐-―−﹘﹣－]")
TEXT_MARKS = re.compile(r"""^(?:=?["'’`]+)|["'’`]+$""")
"""What a spreadsheet writes around a number that is to stay text: 'a leading quote, ="a formula"."""

THOUSANDS = re.compile(r"[0-9]{1,3}(?:(?P<mark>[,'’])[0-9]{3}(?:(?P=mark)[0-9]{3})*|(?:\.[0-9]{3}){2,})")
GROUPED_FRACTION = re.compile(r"(?<=[,'’][0-9]{3})\.0+$|(?<=\.[0-9]{3}),0+$")
WHOLE_FRACTION = re.compile(r"([0-9]+)[.,]0+")
EXPONENT = re.compile(r"([0-9])(?:[.,]([0-9]+))?e\+([0-9]{1,2})")
"""As pandas and spreadsheets write it: with a plus. `3e5` is a name."""

LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
HASH_LIKE = re.compile(r"[0-9][^\W\d_]")
"""A letter right behind a digit: in `a01b1` a zero is a part of the name."""

PLACEHOLDERS = frozenset(
    {
        *("na", "nan", "nat", "none", "null", "nil", "inf", "ref", "value", "unk", "unknown", "unnamed", "undefined"),
        *("unspecified", "missing", "empty", "blank", "redacted", "removed", "withheld", "confidential", "tbd"),
        *("notavailable", "notapplicable", "notknown", "noid", "nopatientid", "patientid", "studyid"),
        *("anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "anonymisiert", "anonymisé"),
        *("anonimo", "anónimo", "anonimizado", "unbekannt", "inconnu", "desconocido", "desconhecido"),
    }
)
"""What is written where there is no id, as `id_key` would spell it without marks."""

MASKED = re.compile(r"x{2,}")
"""One `x` may be a name."""


@dataclass(frozen=True)
class Units:
    """Independent units of N rows. numbers: (N,) integers from 0, equal for the rows of one unit.

    counts: patient, study, image to the number of units that are known by it.
    """

    numbers: np.ndarray
    counts: dict[str, int]

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """`159 patients`, `12 patients and 3 images of unknown patients`."""
        return describe_units(self.counts)


def describe_units(counts: Mapping[str, int]) -> str:
    """`159 patients`, `12 patients and 3 images of unknown patients`; counts: as in `Units`."""
    named = [
        f"1 {unit}{' of an unknown patient' * (unit != 'patient')}"
        if count == 1
        else f"{count:,} {UNIT_COUNTS[unit].replace('_', ' ')}"
        for unit, count in counts.items()
        if count
    ]
    return " and ".join(named) or "no patients"


def id_key(text: str) -> str:
    """What the spellings of one id have in common; empty where the text is a placeholder, or a rounded number.

    Case, white space, invisible characters, compatibility forms, kinds of dash and leading zeros do not count, and a
    number is the same with a fraction of zeros, with thousands set apart, with a spreadsheet's quote or in full
    scientific notation:

        P007, p7, P 07, Ｐ７                                         p7
        9000099, 09000099, 9000099.0, 9,000,099, '9000099, 9.000099E+06    9000099
        nan, N/A, #N/A, Unknown, -, ???, xxx, anonymous               (no id)
        9.00E+06, 1.23457E+11                                         (no id: see `is_rounded`)

    Other marks count (`1-2` is not `12`), and so do letters (`A1` is not `1`), zeros inside or behind a number (`7.01`
    is not `7.1`) and all zeros where letters follow digits, as in hashes (`a01b1` is not `a1b1`). Whether `0` is an id
    depends on the others: see `known_ids`.
    """
    key = _plain(text)
    if _is_placeholder(key) or _lost_digits(key):
        return ""
    if (power := EXPONENT.fullmatch(key)) and not power[2][int(power[3]) :].strip("0"):
        return _without_zeros(f"{power[1]}{power[2]}"[: int(power[3]) + 1])
    whole = GROUPED_FRACTION.sub("", key)
    if THOUSANDS.fullmatch(whole):
        return _without_zeros(re.sub(r"\D", "", whole))
    if number := WHOLE_FRACTION.fullmatch(key):
        return _without_zeros(number[1])
    return key if HASH_LIKE.search(key) else _without_zeros(key)


def is_rounded(text: str) -> bool:
    """Whether a spreadsheet or pandas has rounded the id away: `9.00E+06` may be any of ten thousand patients."""
    return _lost_digits(_plain(text))


def id_keys(column: pd.Series) -> pd.Series:
    """`id_key` of every cell, '' where there is none; each distinct text is asked once."""
    cells = column.fillna("").astype(str)
    return cells.map({text: id_key(text) for text in cells.unique().tolist()}).astype(str)


def known_ids(column: pd.Series) -> pd.Series:
    """The ids without outer blanks, '' where a text is none: a placeholder, a rounded number, or `0` for unknown.

    `0` is an id where the column counts from it: `1` is there as well, and `0` has at most twice the rows of
    any other id.
    """
    cells, keys = column.fillna("").astype(str).str.strip(), id_keys(column)
    counts = keys[keys != ""].value_counts()
    others = counts.drop("0", errors="ignore")
    counted_from = "1" in counts and counts.get("0", 0) <= 2 * others.max()
    return cells.where((keys != "") & ((keys != "0") | counted_from), "")


def independent_units(table: pd.DataFrame) -> Units:
    """Rows of one patient are one unit; where no patient is known rows of one study, else rows of one image.

    A row without a patient belongs to the patient whom another row of its study, or of its image, names. Without any
    of the columns each row is a unit, counted as an image.
    """
    names = pd.Series("", table.index, dtype=object)
    for column, unit in UNITS.items():
        if column not in table:
            continue
        ids = (table[column].fillna("") if unit == "image" else id_keys(table[column])).astype(object)
        named = names[(names != "") & (ids != "")].groupby(ids).first().to_dict()
        filled = pd.Series([named.get(each, f"{unit}:{each}") for each in ids], table.index, dtype=object)
        names = names.mask((names == "") & (ids != ""), filled)
    rows = pd.Series([f"image:row {row}" for row in range(len(table))], table.index, dtype=object)
    numbers, distinct = pd.factorize(names.mask(names == "", rows))
    kinds = [str(name).partition(":")[0] for name in distinct]
    return Units(numbers.astype(np.int64), {unit: kinds.count(unit) for unit in UNITS.values()})


def _plain(text: str) -> str:
    """Compatibility forms, case, dashes and quotes unified; nothing that cannot be seen, no white space."""
    if text.isascii():  # nearly every id: the same in a quarter of the time
        return TEXT_MARKS.sub("", UNSEEN_ASCII.sub("", text.lower()))
    composed = unicodedata.normalize("NFKC", text).casefold()
    visible = "".join(char for char in composed if not char.isspace() and unicodedata.category(char) not in INVISIBLE)
    digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in visible)
    return TEXT_MARKS.sub("", DASHES.sub("-", digits))


def _is_placeholder(key: str) -> bool:
    bare = re.sub(r"[\W_]+", "", key)
    return not bare or key.removesuffix(".0") == "-1" or bare in PLACEHOLDERS or bool(MASKED.fullmatch(bare))


def _lost_digits(key: str) -> bool:
    power = EXPONENT.fullmatch(key)
    return power is not None and len(power[2] or "") < int(power[3])


def _without_zeros(key: str) -> str:
    return LEADING_ZEROS.sub("", key)
