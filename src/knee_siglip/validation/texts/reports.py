"""Whole reports in the column of impressions: of each, only the impression is trained on."""

from typing import Literal

import pandas as pd

from knee_siglip.tables.sections import impression_of, is_report
from knee_siglip.validation.issue import Issue, name_rows


def take_impressions(table: pd.DataFrame, sections: Literal["impression", "keep"]) -> tuple[pd.DataFrame, list[Issue]]:
    """Replace whole reports by their impression, or leave them (`keep`); a warning says how many, either way.

    A report without an impression stays whole: leaving the row out is for the user to decide.

    table: img_path and impression, indexed by spreadsheet row.
    """
    texts = table["impression"].unique()
    said = {text: found for text in texts if (found := impression_of(text)) is not None}
    whole = [text for text in texts if is_report(text)]
    reports, without = (table["impression"].isin(chosen) for chosen in (whole, [*{*whole} - said.keys()]))
    issues = _issues(table, reports, without, sections)
    if sections == "impression":
        table = table.assign(impression=table["impression"].map(lambda text: said.get(text, text)))
    return table, issues


def _issues(table: pd.DataFrame, reports: pd.Series, without: pd.Series, sections: str) -> list[Issue]:
    if not reports.any():
        return []
    count = f"{int(reports.sum()):,} of {len(table):,} impressions are whole reports"
    if sections == "keep":
        message = (
            f"{count}, read from their first word as validate.sections: keep says, so that what is truncated is the "
            f"impression: {_rows(reports)}"
        )
        return [Issue("warning", "whole_report", None, "", message)]
    issues = []
    if taken := int((reports & ~without).sum()):
        message = (
            f"{count}; of {taken:,} the impression was taken, the other sections are not trained on "
            f"(validate.sections: keep reads all): {_rows(reports & ~without)}"
        )
        issues.append(Issue("warning", "whole_report", None, "", message))
    if without.any():
        message = (
            f"{int(without.sum()):,} of {len(table):,} impressions are whole reports without an impression and stay as "
            f"they are: {_rows(without)}"
        )
        issues.append(Issue("warning", "report_without_impression", None, "", message))
    return issues


def _rows(chosen: pd.Series) -> str:
    return name_rows([int(row) for row in chosen.index[chosen]])
