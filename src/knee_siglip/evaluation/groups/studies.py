"""The same metrics of whole studies, and of each view: what is gained by reading all images of an examination."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.evaluation.groups.subgroups import FEWEST_ROWS, find_subgroups
from knee_siglip.evaluation.headline import headline_estimates, interval_metrics
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.metrics.intervals import Interval
from knee_siglip.model.embedding import ensemble
from knee_siglip.params.sections import EvaluateParams

STUDIES, IMAGES = "whole studies", "single images of studies with several"
"""Groups of the table beside the views."""

SECTIONS = {STUDIES: "by_study", IMAGES: "by_study.single_images"}


def study_split(split: EmbeddedSplit) -> EmbeddedSplit | None:
    """The split with one row for each study, in the order of their first images; None where none has several images.

    An embedding is the mean of the images', normalised again; so is the text's where a study has several texts. A study
    whose images have different labels has none. `view` names all its views: `ap+lateral`.
    """
    groups = _groups(split.study_ids)
    if len(groups) == len(split):
        return None
    rows = split.rows.iloc[[group[0] for group in groups]].reset_index(drop=True)
    texts = [dict(zip(split.rows["text"].iloc[group], group, strict=True)) for group in groups]
    rows["text"] = ["\n".join(sorted(row_of)) for row_of in texts]
    for column in {"patient_id", "view"} & set(rows):
        cells = split.rows[column].fillna("").astype(str).to_numpy()
        rows[column] = ["+".join(sorted(set(cells[group]) - {""})) for group in groups]
    if split.task.labels and split.task.labels.column in rows:
        rows[split.task.labels.column] = _common_labels(split, groups)
    return replace(
        split,
        rows=rows,
        image_embeds=np.stack([ensemble(split.image_embeds[group]) for group in groups]),
        text_embeds=np.stack([ensemble(split.text_embeds[list(row_of.values())]) for row_of in texts]),
    )


def study_predictions(split: EmbeddedSplit, params: EvaluateParams) -> pd.DataFrame:
    """As `predictions_of`, but a row for each study, with its number of `images`; no rows where none has several."""
    studies = study_split(split)
    if studies is None:
        return pd.DataFrame({"split": pd.Series(dtype=str), "study_id": pd.Series(dtype=str)})
    table = predictions_of(studies, params).drop(columns=["img_path", "image_id"])
    return table.assign(images=np.bincount(split.study_ids))


def studies_table(split: EmbeddedSplit, images: pd.DataFrame, studies: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per group and headline metric: whole studies, the images of those with several, and each of two views.

    images, studies: their predictions. Groups of fewer than `FEWEST_ROWS` are left out.

    Returns:
        group, n, metric, value, low and high (95 % bootstrap of patients, None where they are too few), units: how many
        of them the metric rests on.
    """
    groups: dict[str, pd.DataFrame] = {}
    if len(studies):
        several = np.bincount(split.study_ids)[split.study_ids] > 1
        groups = {STUDIES: studies, IMAGES: images[several]}
    groups |= {f"view {view.name}": images.iloc[view.rows] for view in find_subgroups(images, ["view"])}
    return [
        {
            "group": name,
            "n": len(table),
            "metric": metric,
            "value": estimate.value,
            "low": estimate.interval and estimate.interval.low,
            "high": estimate.interval and estimate.interval.high,
            "units": estimate.units,
        }
        for name, table in groups.items()
        if len(table) >= FEWEST_ROWS
        for metric, estimate in headline_estimates(table.reset_index(drop=True)).items()
    ]


def study_metrics(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rows of `studies_table` as by_study.* and by_view.<view>.*, with their intervals and `n`."""
    metrics: dict[str, float] = {}
    for row in table:
        view = re.sub(r"\W+", "_", row["group"].removeprefix("view ").casefold())
        section = SECTIONS.get(row["group"], f"by_view.{view}")
        name = f"{section}.{row['metric']}"
        interval = None if row["low"] is None else Interval(row["low"], row["high"])
        metrics |= {f"{section}.n": row["n"], name: row["value"]} | interval_metrics(name, interval, row["units"])
    return metrics


def _groups(ids: np.ndarray) -> list[np.ndarray]:
    """Rows by group, of ids (N,) from 0 without gaps."""
    return np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])


def _common_labels(split: EmbeddedSplit, groups: Sequence[np.ndarray]) -> pd.Series:
    """The label of each study, missing where its images have none or different ones."""
    positions = np.full(len(split), -1)
    positions[split.graded] = split.grades
    cells = []
    for group in groups:
        known = np.unique(positions[group][positions[group] >= 0])
        cells.append(split.task.labels.cell(int(known[0])) if len(known) == 1 else None)
    return pd.Series(cells, dtype="Int64" if split.task.labels.are_numbers else "string")
