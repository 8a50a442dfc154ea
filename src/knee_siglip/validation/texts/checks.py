"""What is wrong with the impressions, by themselves and against the other columns.

Errors are texts that are none: nothing is left of them, or they are what a program writes where a text is missing.
Everything else is a warning: it can be trained on, and only a reader knows whether it should.
"""

from typing import TYPE_CHECKING

import pandas as pd

from knee_siglip.tables.manifest import SPLITS
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.texts.boilerplate import check_boilerplate, check_missing
from knee_siglip.validation.texts.damage import check_damage
from knee_siglip.validation.texts.grades import check_grade
from knee_siglip.validation.texts.language import check_language
from knee_siglip.validation.texts.laterality import check_side
from knee_siglip.validation.texts.privacy import check_personal_data
from knee_siglip.validation.texts.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPEATED_SHARE = 0.5
REPEATED_FROM = 20
"""One text in more than this share of a split, where the split has at least so many rows, is worth a word."""

TEMPLATED_SHARE = 0.5
"""Share of val and test rows whose text is known from train, above which retrieval measures recognition of it."""


def check_texts(
    table: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase | None", max_text_length: int, task: Task
) -> list[Issue]:
    """All checks of the impressions.

    table: img_path, impression, split and text (normalised), and side and the task's labels where there are such;
    indexed by spreadsheet row. Without a tokenizer what depends on it is left out, and a warning says so.
    """
    return [
        *check_missing(table),
        *check_boilerplate(table, task),
        *check_damage(table),
        *check_language(table),
        *check_personal_data(table),
        *check_side(table, task),
        *check_grade(table, task),
        *check_repeated(table),
        *check_templated(table),
        *check_tokens(table, tokenizer, max_text_length),
    ]


def text_metrics(
    table: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase | None", max_text_length: int
) -> dict[str, float | int]:
    """Counts and shares (0-1) of the texts for metrics.json; those of tokens only with a tokenizer."""
    words = table["text"].map(lambda text: len(text.split()))
    metrics: dict[str, float | int] = {
        "distinct": int(table["text"].nunique()),
        "most_frequent_share": float(table["text"].value_counts(normalize=True).max()) if len(table) else 0.0,
        "templated_share": templated_share(table),
        "words_median": float(words.median()) if len(table) else 0.0,
        "words_min": int(words.min()) if len(table) else 0,
        "words_max": int(words.max()) if len(table) else 0,
    }
    if tokenizer is not None:
        metrics |= Tokens(tokenizer, table["text"], max_text_length).metrics(table["text"])
    return metrics


def check_repeated(table: pd.DataFrame) -> list[Issue]:
    """A warning for every split of which one text makes up a large share."""
    issues = []
    for split in SPLITS:
        rows = table[table["split"] == split]
        if len(rows) < REPEATED_FROM:
            continue
        count = int(rows["text"].value_counts().max())
        if count > REPEATED_SHARE * len(rows):
            message = (
                f"{count:,} of {len(rows):,} rows ({count / len(rows):.1%}) of split {split} have the same text: "
                "whoever always answers with it is right as often"
            )
            issues.append(Issue("warning", "repeated_text", None, "", message))
    return issues


def templated_share(table: pd.DataFrame) -> float:
    """Share (0-1) of val and test rows whose normalised text also stands in train; 0 where there are none."""
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


def check_tokens(table: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase | None", max_text_length: int) -> list[Issue]:
    """What the tokenizer cuts, does not know or changes (token_checks.py)."""
    if tokenizer is None:
        message = "no tokenizer is at hand: whether texts are cut or hold unknown words was not checked"
        return [Issue("warning", "tokens_not_checked", None, "", message)]
    return Tokens(tokenizer, table["text"], max_text_length).check(table)
