"""Maps of single cases for the case browser: as rough numbers over the original picture, which the browser colours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.explain.overlays import LOG_ODDS, missing_reason
from knee_siglip.imaging.fit.transform import Transform

CELLS = 24
"""Along each side of a stored map: finer than the window that is hidden."""

MISTAKES = 16
"""Worst wrong grades that are mapped: three seconds on two cores."""


def worst_grades(split: EmbeddedSplit, count: int) -> list[int]:
    """At most so many rows of wrong grades, the furthest and then the surest first."""
    errors = np.abs(split.predicted[split.graded] - split.grades)
    sure = split.grade_probabilities[split.graded].max(axis=1, initial=0)
    order = np.lexsort([-sure, -errors])[: min(count, np.count_nonzero(errors))]
    return split.graded[order].tolist()


@dataclass(frozen=True)
class Question:
    """What a map of an image asks: where does it speak for a phrase rather than for `against`?

    row: of the split. direction: (D,) embedding of the phrase less that of `against`.
    """

    row: int
    title: str
    direction: np.ndarray
    against: str

    def missing_reason(self, split: EmbeddedSplit, heat: np.ndarray) -> str:
        """Why the phrase is nowhere in the image, "" where it is somewhere. heat: the map, in cosines."""
        margin = split.logit_scale * float(split.image_embeds[self.row] @ self.direction)
        return missing_reason(split.logit_scale * heat, margin, self.against)


def why_not_right(split: EmbeddedSplit, row: int) -> Question:
    """What speaks for the predicted grade rather than the right one."""
    right = int(split.grades[np.flatnonzero(split.graded == row)[0]])
    said, labels = int(split.predicted[row]), split.task.labels
    short, value = split.task.label_short, labels.values
    title = f"{short} {value[said]} rather than {value[right]}"
    direction = _prompts_as_they_count(split, row, said) - _prompts_as_they_count(split, row, right)
    return Question(row, title, direction, f"{short} {value[right]}")


def _prompts_as_they_count(split: EmbeddedSplit, row: int, grade: int) -> np.ndarray:
    """(D,): the grade's prompts by their weights for this image, which is the gradient of its score."""
    prompts = split.prompts.grades[grade]
    return np.asarray(softmax(split.logit_scale * (prompts @ split.image_embeds[row])) @ prompts)


def case_map(split: EmbeddedSplit, data: EmbeddedData, question: Question, heat: np.ndarray) -> dict[str, Any]:
    """JSON of a map (S, S) in cosines: `row`, `title`, `heat` in log-odds, and `missing`: why it is nowhere, or ""."""
    size = (int(split.rows["height"].iloc[question.row]), int(split.rows["width"].iloc[question.row]))
    cells = split.logit_scale * over_picture(heat, data.pixels.transform, *size)
    return {
        "row": question.row,
        "title": question.title,
        "missing": question.missing_reason(split, heat),
        "heat": np.round(cells, 2).tolist(),
        "full": LOG_ODDS.full,
    }


def over_picture(heat: np.ndarray, transform: Transform, height: int, width: int) -> np.ndarray:
    """A map of the encoder's square (S, S) to one of the original picture (CELLS, CELLS); 0 where it was cropped."""
    ((left, top, right, bottom),) = transform.place_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), height, width)
    steps = (np.arange(CELLS) + 0.5) / CELLS
    rows, columns = top + steps * (bottom - top), left + steps * (right - left)
    inside = [(places >= 0) & (places < len(heat)) for places in (rows, columns)]
    sampled = heat[np.ix_(*(np.clip(places, 0, len(heat) - 1).astype(int) for places in (rows, columns)))]
    return np.asarray(sampled * np.outer(*inside))
