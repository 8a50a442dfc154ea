"""Checks of the impressions, by themselves and against the other columns.

Missing texts are errors: empty ones, and what a program writes instead of nothing. Everything else is a warning: it can
be trained on, and only a reader knows whether it should.
"""

import pandas as pd

from knee_siglip.tables.manifest import SPLITS
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.splits.cohort import text_words
from knee_siglip.validation.texts.boilerplate import check_boilerplate, check_missing
from knee_siglip.validation.texts.damage import check_damage
from knee_siglip.validation.texts.grades import check_grade
from knee_siglip.validation.texts.language import check_language
from knee_siglip.validation.texts.laterality import check_side
from knee_siglip.validation.texts.privacy import check_personal_data
from knee_siglip.validation.texts.tokens import Tokens

REPEATED_SHARE = 0.5
REPEATED_FROM = 20
"""One text in more than this share of a split, where the split has at least so many rows, is worth a word."""

TEMPLATED_SHARE = 0.5
"""Share of val and test rows whose text is known from train, above which retrieval measures recognition of it."""


def check_texts(table: pd.DataFrame, tokens: Tokens | None, task: Task) -> list[Issue]:
    """Run all checks of the impressions.

    table: img_path, impression, split and text (normalised), and the columns side and labels if there are any; indexed
    by spreadsheet row. tokens: None without a tokenizer; a warning then says what was not checked.
    """
    message = "no tokenizer is at hand: whether texts are cut or hold unknown words was not checked"
    unchecked = Issue("warning", "tokens_not_checked", None, "", message)
    return [
        *check_missing(table),
        *check_boilerplate(table, task),
        *check_damage(table),
        *check_language(table, tokens, [text for prompts in task.label_prompts for text in prompts] or task.queries),
        *check_personal_data(table),
        *check_side(table, task),
        *check_grade(table, task),
        *check_repeated(table),
        *check_templated(table),
        *(tokens.check(table) if tokens is not None else [unchecked]),
    ]


def text_metrics(table: pd.DataFrame, tokens: Tokens | None) -> dict[str, float | int]:
    """Counts and shares (0-1) of the texts for metrics.json; those of tokens only with a tokenizer."""
    words = text_words(table)
    metrics: dict[str, float | int] = {
        "distinct": int(table["text"].nunique()),
        "most_frequent_share": float(table["text"].value_counts(normalize=True).max()) if len(table) else 0.0,
        "templated_share": templated_share(table),
        "words_median": float(words.median()) if len(table) else 0.0,
        "words_min": int(words.min()) if len(table) else 0,
        "words_max": int(words.max()) if len(table) else 0,
    }
    return metrics | (tokens.metrics(table["text"]) if tokens is not None else {})


def check_repeated(table: pd.DataFrame) -> list[Issue]:
    """A warning for every split of which one text makes up a large share."""
    issues = []
    for split in SPLITS:
        rows = table[table["split"] == split]
        count = int(rows["text"].value_counts().max()) if len(rows) >= REPEATED_FROM else 0
        if count > REPEATED_SHARE * len(rows):
            message = (
                f"{count:,} of {len(rows):,} rows ({count / len(rows):.1%}) of split {split} have the same text: "
                "whoever always answers with it is right as often"
            )
            issues.append(Issue("warning", "repeated_text", None, "", message))
    return issues


def templated_share(table: pd.DataFrame) -> float:
    """Share (0-1) of val and test rows whose normalised text also stands in train; 0 without such rows."""
    held_out = table[table["split"].isin(["val", "test"])]
    train = table.loc[table["split"] == "train", "text"]
    return float(held_out["text"].isin(train).mean()) if len(held_out) else 0.0


def check_templated(table: pd.DataFrame) -> list[Issue]:
    """A warning where most of the held-out texts are known from training.

    That is no leak, for equal images get equal words; but it has to be known when retrieval scores are read.
    """
    share = templated_share(table)
    if share <= TEMPLATED_SHARE:
        return []
    message = (
        f"{share:.1%} of the val and test rows have a text that also stands in train: templated texts; retrieval then "
        "tells known sentences apart, and says nothing about new ones"
    )
    return [Issue("warning", "templated_texts", None, "", message)]
