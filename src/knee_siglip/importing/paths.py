"""What the images' paths tell: groups of a pattern, names to join by, splits, patients and sides."""

import re

import pandas as pd

from knee_siglip.importing.columns import IMAGE, SIDES
from knee_siglip.importing.files import bare_name
from knee_siglip.importing.outcome import Outcome
from knee_siglip.validation.rows import SPLIT_SYNONYMS

NUMBER_AND_SIDE = re.compile(r"(?P<patient_id>[A-Za-z]*\d+)[ _-]?(?P<side>left|right|[lr])", re.IGNORECASE)
"""`9001104L`, `P17_right`. Not `9001104_00m_R`: of two visits' names the first part would not be the same."""

PAIRED = 0.5
"""Share of the numbers that have both sides, from which the number is a patient."""

FEWEST_PATIENTS = 0.3
"""Patients for each study, below which a folder above the studies is a hospital or a part, no patient."""


def path_groups(cells: pd.Series, *patterns: str) -> pd.DataFrame:
    """Named groups of the first pattern that is found in each cell, '' where none is."""
    compiled = [re.compile(pattern) for pattern in patterns]
    names = list(dict.fromkeys(name for pattern in compiled for name in pattern.groupindex))
    records = []
    for cell in cells:
        match = next((found for pattern in compiled if (found := pattern.search(cell))), None)
        records.append(
            dict.fromkeys(names, "")
            | {name: value or "" for name, value in (match.groupdict() if match else {}).items()}
        )
    return pd.DataFrame(records, index=cells.index, columns=names, dtype=object)


def image_names(rows: pd.DataFrame) -> pd.DataFrame:
    """What an image's path tells, as columns by which a table may be joined: its name, and the folders above it."""
    parts = rows[IMAGE].str.split("/")
    names = {"(file name)": rows[IMAGE].map(lambda name: name.rpartition("/")[2])}
    names["(name)"] = rows[IMAGE].map(bare_name)
    names |= {f"(folder {up})": parts.map(lambda part, up=up: part[-1 - up] if len(part) > up else "") for up in (1, 2)}
    return pd.DataFrame(names, rows.index)


def with_told(rows: pd.DataFrame, told: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows with what their paths tell, in working columns such as `(side)`; and ours to these."""
    columns = {str(name): f"({name})" for name in told}
    return rows.join(told.rename(columns=columns)), columns


def told_by_paths(rows: pd.DataFrame, known: set[str], outcome: Outcome) -> pd.DataFrame:
    """The columns of ours that no table names (`known` are those that one does) and that all images' paths tell.

    split: a folder `train`, `valid` or `test`. patient_id and side: names such as `9001104L`, most with both sides.
    """
    found = pd.DataFrame(index=rows.index)
    folders = rows[IMAGE].str.split("/").map(lambda parts: [SPLIT_SYNONYMS.get(part.casefold(), "") for part in parts])
    splits = folders.map(lambda names: "".join(names[:-1]))
    if "split" not in known and splits.nunique() > 1 and splits.isin(SPLIT_SYNONYMS.values()).all():
        found["split"] = splits
        outcome.mapped("split", "(folder)", "the images lie in folders of splits")
    named = rows[IMAGE].map(lambda name: NUMBER_AND_SIDE.fullmatch(bare_name(name)))
    if not known >= {"patient_id", "side"} and not rows.empty and named.notna().all():
        patients, sides = (named.map(lambda match, of=of: match[of].casefold()) for of in ("patient_id", "side"))
        both = sides.map(lambda side: side[0]).groupby(patients).nunique() == len("lr")
        if both.mean() >= PAIRED:
            told = {"patient_id": patients, "side": sides.map(SIDES)}
            for name in [name for name in told if name not in known]:
                found[name] = told[name]
                outcome.mapped(name, "(file name)", f"{bare_name(rows[IMAGE].iloc[0])}: a number and a side")
    return found


def study_folders(rows: pd.DataFrame) -> pd.DataFrame:
    """Of images in a folder for each study: it as study_id, and the folder above as patient_id if it can be one."""
    names = image_names(rows)
    studies, above = names["(folder 1)"], names["(folder 2)"]
    ids = studies.to_frame("study_id")
    is_patient = above.groupby(studies).nunique().max() == 1 and not set(above.str.casefold()) & {"", *SPLIT_SYNONYMS}
    if is_patient and above.nunique() >= FEWEST_PATIENTS * studies.nunique():
        ids["patient_id"] = above
    return ids
