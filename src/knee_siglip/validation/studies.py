"""What the rows of one study must have in common."""

import pandas as pd

from knee_siglip.tables.ids import id_keys
from knee_siglip.validation.issue import Issue, Severity, issues_of_rows, name_rows


def check_studies(table: pd.DataFrame) -> list[Issue]:
    """An error for a study of several patients, a warning for one with several texts; nothing without `study_id`.

    table: with study_id, patient_id (both empty where unknown) and the normalised text.
    """
    if "study_id" not in table.columns:
        return []
    patients = table.assign(patient=id_keys(table["patient_id"]))
    return [
        *_differing(
            patients[patients["patient"] != ""],
            "patient",
            "study_of_several_patients",
            "{count} patients: write ids that no two studies share, such as patient and study together",
            "error",
        ),
        *_differing(
            table,
            "text",
            "study_texts",
            "{count} different texts, each of which is taken as right for all its images",
            "warning",
        ),
    ]


def _differing(table: pd.DataFrame, column: str, check: str, problem: str, severity: Severity) -> list[Issue]:
    """An issue at the first row of each study whose rows differ in `column`."""
    keys = id_keys(table["study_id"])
    known = table[keys != ""]
    keys = keys[known.index]
    differing = known[known.groupby(keys)[column].transform("nunique") > 1]
    messages = {}
    for _, study in differing.groupby(keys[differing.index], sort=False):
        rows = [int(row) for row in study.index]
        what = problem.format(count=study[column].nunique())
        messages[rows[0]] = f"study {study['study_id'].iloc[0]} has {what} ({name_rows(rows)})"
    return issues_of_rows(table, check, messages, f"are the first of a study whose {column}s differ", severity)
