"""What was predicted, image by image: the tables from which every headline number can be computed again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.core.files import atomic_file
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.findings import finding_truth_and_scores
from knee_siglip.metrics.categories import category_columns
from knee_siglip.metrics.matching.retrieval import FirstCorrect, contrastive_credit, embedding_scores
from knee_siglip.params.sections import EvaluateParams

BEFORE_LABEL, AFTER_LABEL = ("img_path", "image_id", "split", "patient_id"), ("side", "view", "text", "study_id")
"""Columns of the manifest, around that of the labels, that the table repeats where there are any."""

MADE_HERE = frozenset({"impression", "text", "text_tokens", "text_alternatives", "flags", "findings", "image_file"})
"""Columns of the manifest that say nothing of how an image was taken, or say it too long."""

FOUND_COLUMNS: dict[str, Callable[[FirstCorrect], np.ndarray]] = {
    "rank": FirstCorrect.expected_rank,
    "recall_at_1": lambda found: found.recall_at(1),
    "recall_at_5": lambda found: found.recall_at(5),
    "recall_at_10": lambda found: found.recall_at(10),
    "reciprocal_rank": FirstCorrect.expected_reciprocal_rank,
    "average_precision": FirstCorrect.average_precision,
}
"""Of each search a column `<search>_<name>`, whose mean (of the rank: median) is the retrieval metric of that name."""


def predictions_of(split: EmbeddedSplit, params: EvaluateParams) -> pd.DataFrame:
    """One row per image of a split.

    What is known of it (manifest, with every column of few values, such as a device; `text_id`: equal where the texts
    are); for each label of the task, such as 3 of `kl_grade`, `kl_score_3`: its `label_scores`, and
    `kl_probability_3`; `kl_grade_predicted`; `FOUND_COLUMNS` of each search and, as `strict_...`, of those where only
    the very pair is correct; `contrastive_image_to_text`, `contrastive_text_to_image`: credit inside the batch of
    number `contrastive_batch`, all three empty for rows left over; `finding_<name>_score`: cosine with the prompts for
    it minus that with those against it, and `finding_<name>_truth`.
    """
    labels, findings = split.task.labels, finding_truth_and_scores(split)
    columns_of_data = (*params.subgroup_columns(labels.column), *category_columns(split.rows, MADE_HERE))
    names = dict.fromkeys((*BEFORE_LABEL, labels.column, *AFTER_LABEL, *columns_of_data))
    carried = [name for name in names if name in split.rows]
    columns = {"text_id": split.text_ids} | _grading(split) | _retrieval(split) | dict(_contrastive(split))
    columns |= {f"finding_{name}_score": score for name, (_, score) in findings.items()}
    columns |= {f"finding_{name}_truth": truth for name, (truth, _) in findings.items()}
    table = pd.concat([split.rows[carried], pd.DataFrame(columns)], axis=1)
    if not labels or labels.column not in table:
        return table
    # empty for rows that take no part in the grading
    grades = _cells(split, split.grades, split.graded).reindex(range(len(split)))
    return table.assign(**{labels.column: grades})


def embeddings_table(data: EmbeddedData) -> pd.DataFrame:
    """One row per image of the evaluated splits: image_id, split, image_embed and text_embed, (D,) float32 each."""
    tables = [
        split.rows[["image_id", "split"]].assign(
            image_embed=list(split.image_embeds), text_embed=list(split.text_embeds)
        )
        for split in data.evaluated
    ]
    return pd.concat(tables, ignore_index=True)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write either table as parquet; the file's bytes depend on its content alone."""
    with atomic_file(path) as file:
        table.to_parquet(file, index=False)


def _cells(split: EmbeddedSplit, grades: np.ndarray, rows: np.ndarray) -> pd.Series:
    """Grades as a column holds them, at these rows."""
    labels = split.task.labels
    cells: list[Any] = [labels.cell(grade) for grade in grades.tolist()]
    return pd.Series(cells, index=rows, dtype="Int64" if labels.are_numbers else "string")


def _grading(split: EmbeddedSplit) -> dict[str, np.ndarray]:
    labels = split.task.labels
    if not labels:
        return {}
    scores = dict(zip(labels.scores, split.grade_scores.T, strict=True))
    probabilities = dict(zip(labels.probabilities, split.grade_probabilities.T, strict=True))
    predicted = _cells(split, split.predicted, np.arange(len(split)))
    kind = np.int64 if labels.are_numbers else object
    return scores | probabilities | {labels.predicted: predicted.to_numpy(kind)}


def _retrieval(split: EmbeddedSplit) -> dict[str, np.ndarray]:
    found = split.searches | {f"strict_{search}": found for search, found in split.strict_searches.items()}
    return {
        f"{search}_{name}": column(standing)
        for search, standing in found.items()
        for name, column in FOUND_COLUMNS.items()
    }


def _contrastive(split: EmbeddedSplit) -> pd.DataFrame:
    credit = contrastive_credit(
        embedding_scores(split.image_embeds, split.text_embeds), split.correct, split.batch_size
    )
    batches = np.arange(len(credit.rows)) // max(credit.batch_size, 1)
    columns = {
        "contrastive_image_to_text": credit.image_to_text,
        "contrastive_text_to_image": credit.text_to_image,
        "contrastive_batch": pd.array(batches, dtype="Int64"),
    }
    return pd.DataFrame(columns, index=credit.rows).reindex(range(len(split)))
