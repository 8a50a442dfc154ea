"""Single images of an evaluation with their pictures: the gallery of retrieval, the worst mistakes, the maps."""

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from knee_siglip.report.evaluation.results import EvaluationResults
from knee_siglip.report.evaluation.wording import percentage
from knee_siglip.report.html.pictures import SIDE, Picture, picture_of
from knee_siglip.task.task import Task

MAP_SIDE = 2 * SIDE
"""A map is two images beside each other, the one without and the one with it."""

Card = dict[str, Any]
"""An example of examples.json, whose `picture` is now one."""


def gallery(results: EvaluationResults) -> list[Card]:
    """Images, what was written about each, and the texts that the model found for it."""
    return _cards(results, "gallery")


def worst_mistakes(results: EvaluationResults) -> list[Card]:
    """Images whose grade the model mistook, with a `title` that says how."""
    return [card | {"title": _mistake(card, results.shown.task)} for card in _cards(results, "mistakes")]


def maps(results: EvaluationResults) -> list[Card]:
    """The grounding maps, each with its `title`."""
    return _cards(results, "maps", MAP_SIDE)


def _cards(results: EvaluationResults, kind: str, side: int = SIDE) -> list[Card]:
    return [
        {**example, "picture": _load(results.folder / example["picture"], side)}
        for example in results.examples.get(kind, ())
    ]


def _mistake(card: Card, task: Task) -> str:
    return (
        f"Reader: {_grade(card['actual'], task)}. Model: {_grade(card['predicted'], task)}, "
        f"confidence {percentage(card['probability'])}."
    )


def _grade(grade: int, task: Task) -> str:
    return f"{task.labels.values[grade]} ({task.label_words[grade]})"


def _load(path: Path, side: int) -> Picture:
    try:
        with Image.open(path) as image:
            return picture_of(image.convert("RGB") if image.mode != "L" else image, side)
    except (UnidentifiedImageError, OSError):
        return Picture("", "This picture cannot be shown.")
