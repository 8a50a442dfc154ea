"""Impressions that name another grade than the column of labels.

All grades that a text names are allowed, so two compartments or an earlier study raise no warning.
"""

import pandas as pd

from knee_siglip.core.expressions import find_matches
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue, issues_of_rows
from knee_siglip.validation.texts.kellgren_lawrence import Grades, grades_in_text, is_negated
from knee_siglip.validation.texts.plain_text import plain


def check_grade(table: pd.DataFrame, task: Task) -> list[Issue]:
    """Warnings for texts whose grade cannot be the column's.

    A warning, not an error: grade and impression often come from different readers.
    """
    labels = task.labels
    if not labels or not task.label_patterns or labels.column not in table.columns:
        return []
    given = pd.Series(labels.positions(table[labels.column]), index=table.index, dtype="int64")
    told = {text: named_grades(text, task) for text in table.loc[given >= 0, "impression"].unique()}
    messages = {}
    for row, grade, text in zip(table.index, given, table["impression"], strict=True):
        if grade >= 0 and (said := told[text]) and grade not in said[1]:
            phrase, grades = said
            value, named = labels.values[grade], _name(grades, task)
            messages[int(row)] = f"{labels.column} is {value}, but the impression says {phrase!r}: {named}"
    return issues_of_rows(table, "grade_contradiction", messages, f"name another grade than the column {labels.column}")


def named_grades(text: str, task: Task) -> tuple[str, Grades] | None:
    """The words that name a grade, and every grade (position in the labels) they allow; None if no grade is named."""
    if isinstance(task.label_patterns, str):
        return grades_in_text(text)
    words, phrases = plain(text), {}
    for label, pattern in task.label_patterns.items():
        for match in find_matches(f"task.label_patterns.{label}", pattern, words):
            if not is_negated(words, match):
                phrases[match[0]] = task.labels.position(label)
    return (", ".join(phrases), frozenset(phrases.values())) if phrases else None


def _name(grades: Grades, task: Task) -> str:
    """`grade 3`, `grades 1-3`."""
    values = [task.labels.values[grade] for grade in sorted(grades)]
    if len(values) == 1:
        return f"grade {values[0]}"
    if len(values) > 1 and len(values) == max(grades) - min(grades) + 1:
        return f"grades {values[0]}-{values[-1]}"
    return f"grades {', '.join(values)}"
