"""Maps of single cases for the case browser: as rough numbers over the original picture, which the browser colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.regions import Region
from knee_siglip.explain.overlays import LEAST, LOG_ODDS
from knee_siglip.imaging.fit.transform import Transform

CELLS = 24
"""Along each side of a stored map: finer than the window that is hidden."""

MISTAKES = 16
"""Worst wrong grades that are mapped: three seconds on two cores."""


def worst_grades(split: EmbeddedSplit) -> list[int]:
    """Rows of the most wrong grades, the furthest and then the surest first."""
    if not len(split.graded):
        return []
    errors = np.abs(split.predicted[split.graded] - split.grades)
    sure = split.grade_probabilities[split.graded].max(axis=1)
    order = np.lexsort([-sure, -errors])
    return [int(split.graded[place]) for place in order[:MISTAKES] if errors[place]]


def why_not_right(split: EmbeddedSplit, row: int) -> tuple[str, np.ndarray]:
    """Title and direction (D,) of what speaks for the predicted grade rather than the right one."""
    right = int(split.grades[np.flatnonzero(split.graded == row)[0]])
    said, labels, prompts = int(split.predicted[row]), split.task.labels, split.prompts.grade_ensembles
    title = f"{split.task.label_short} {labels.values[said]} rather than {labels.values[right]}"
    return title, prompts[said] - prompts[right]


def region_maps(
    split: EmbeddedSplit, data: EmbeddedData, regions: Sequence[Region], heats: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Of each region the map of its finding, in cosines."""
    return [
        case_map(split, data, region.row, region.finding.replace("_", " "), heat)
        for region, heat in zip(regions, heats, strict=True)
    ]


def case_map(split: EmbeddedSplit, data: EmbeddedData, row: int, title: str, heat: np.ndarray) -> dict[str, Any]:
    """JSON of one map: `row` of the split, `title`, `heat` in log-odds, `found`: whether a place is worth enough."""
    size = (int(split.rows["height"].iloc[row]), int(split.rows["width"].iloc[row]))
    cells = split.logit_scale * over_picture(heat, data.pixels.transform, *size)
    found = bool(cells.max() >= LEAST)
    return {"row": row, "title": title, "found": found, "heat": np.round(cells, 2).tolist(), "full": LOG_ODDS.full}


def over_picture(heat: np.ndarray, transform: Transform, height: int, width: int) -> np.ndarray:
    """A map of the encoder's square (S, S) to one of the original picture (CELLS, CELLS); 0 where it was cropped."""
    ((left, top, right, bottom),) = transform.place_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), height, width)
    steps = (np.arange(CELLS) + 0.5) / CELLS
    rows, columns = top + steps * (bottom - top), left + steps * (right - left)
    inside = [(places >= 0) & (places < len(heat)) for places in (rows, columns)]
    sampled = heat[np.ix_(*(np.clip(places, 0, len(heat) - 1).astype(int) for places in (rows, columns)))]
    return np.asarray(sampled * np.outer(*inside))
