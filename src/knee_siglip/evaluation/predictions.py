"""What was predicted, image by image: the tables from which every headline number can be computed again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.findings import finding_truth_and_scores
from knee_siglip.metrics.grading import GRADES
from knee_siglip.metrics.matching.retrieval import FirstCorrect, contrastive_credit, embedding_scores
from knee_siglip.params.sections import EvaluateParams

CARRIED = ("img_path", "image_id", "split", "patient_id", "kl_grade", "side", "view", "text", "study_id")
"""Columns of the manifest that the table repeats where there are any, beside those of `evaluate.subgroups`."""

FOUND_COLUMNS: dict[str, Callable[[FirstCorrect], np.ndarray]] = {
    "rank": FirstCorrect.expected_rank,
    "recall_at_1": lambda found: found.recall_at(1),
    "recall_at_5": lambda found: found.recall_at(5),
    "recall_at_10": lambda found: found.recall_at(10),
    "reciprocal_rank": FirstCorrect.expected_reciprocal_rank,
    "average_precision": FirstCorrect.average_precision,
}
"""Of each search a column `<search>_<name>`, whose mean (of the rank: median) is the retrieval metric of that name."""


def predictions_table(data: EmbeddedData) -> pd.DataFrame:
    """One row per image of the evaluated splits.

    What is known of it (`CARRIED`, `text_id`: equal where the texts of a split are); `kl_score_<g>`: cosine with the
    prompts of each grade, `kl_probability_<g>`, `kl_grade_predicted`; `FOUND_COLUMNS` of each search and, as
    `strict_...`, of those where only the very pair is correct; `contrastive_image_to_text`,
    `contrastive_text_to_image`: credit inside the batch of number `contrastive_batch`, all three empty for rows left
    over; `finding_<name>_score`: cosine with the prompts for it minus that with those against it, and
    `finding_<name>_truth`.
    """
    return pd.concat([predictions_of(split, data.params) for split in data.evaluated], ignore_index=True)


def predictions_of(split: EmbeddedSplit, params: EvaluateParams) -> pd.DataFrame:
    """The rows of one split."""
    carried = [name for name in dict.fromkeys((*CARRIED, *params.subgroups)) if name in split.rows]
    columns = {"text_id": split.text_ids} | _grading(split) | _retrieval(split) | _contrastive(split)
    columns |= _findings(split, params)
    table = pd.concat([split.rows[carried], pd.DataFrame(columns)], axis=1)
    return table.assign(kl_grade=_grades(split)) if "kl_grade" in table else table


def embeddings_table(data: EmbeddedData) -> pd.DataFrame:
    """One row per image of the evaluated splits: image_id, split, image_embed and text_embed, (D,) float32 each."""
    return pd.concat([_embeddings(split) for split in data.evaluated], ignore_index=True)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write either table as parquet; the file's bytes depend on its content alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=False)


def _grades(split: EmbeddedSplit) -> pd.Series:
    """(N,) Int64, empty for rows that take no part in the grading."""
    return pd.Series(split.grades, index=split.graded, dtype="Int64").reindex(range(len(split)))


def _grading(split: EmbeddedSplit) -> dict[str, np.ndarray]:
    scores = {f"kl_score_{grade}": split.grade_scores[:, grade] for grade in range(GRADES)}
    probabilities = {f"kl_probability_{grade}": split.grade_probabilities[:, grade] for grade in range(GRADES)}
    return scores | probabilities | {"kl_grade_predicted": split.predicted}


def _retrieval(split: EmbeddedSplit) -> dict[str, np.ndarray]:
    found = split.searches | {f"strict_{search}": found for search, found in split.strict_searches.items()}
    return {
        f"{search}_{name}": column(standing)
        for search, standing in found.items()
        for name, column in FOUND_COLUMNS.items()
    }


def _contrastive(split: EmbeddedSplit) -> dict[str, pd.Series]:
    credit = contrastive_credit(
        embedding_scores(split.image_embeds, split.text_embeds), split.text_ids, split.batch_size
    )
    batches = np.arange(len(credit.rows)) // max(credit.batch_size, 1)
    places = range(len(split))
    return {
        "contrastive_image_to_text": pd.Series(credit.image_to_text, index=credit.rows).reindex(places),
        "contrastive_text_to_image": pd.Series(credit.text_to_image, index=credit.rows).reindex(places),
        "contrastive_batch": pd.Series(batches, index=credit.rows, dtype="Int64").reindex(places),
    }


def _findings(split: EmbeddedSplit, params: EvaluateParams) -> dict[str, np.ndarray]:
    found = finding_truth_and_scores(split, params)
    scores = {f"finding_{name}_score": score for name, (_, score) in found.items()}
    return scores | {f"finding_{name}_truth": truth for name, (truth, _) in found.items()}


def _embeddings(split: EmbeddedSplit) -> pd.DataFrame:
    embeds = {"image_embed": list(split.image_embeds), "text_embed": list(split.text_embeds)}
    return split.rows[["image_id", "split"]].assign(**embeds)
