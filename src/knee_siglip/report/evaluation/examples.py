"""Single images of an evaluation with their pictures: the gallery of retrieval, the worst mistakes, the maps."""

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from knee_siglip.report.evaluation.results import EvaluationResults
from knee_siglip.report.evaluation.wording import cases_link, grade_names, percentage
from knee_siglip.report.html.pictures import SIDE, Picture, picture_of

MAP_SIDE = 2 * SIDE
"""A map is two images beside each other, the one without and the one with it."""

Card = dict[str, Any]
"""An example of examples.json, whose `picture` is now one."""


def cards(results: EvaluationResults, kind: str, side: int = SIDE) -> list[Card]:
    """Examples of a kind with their pictures: `gallery` (an image and the texts found for it), `mistakes` or `maps`."""
    return [
        {**example, "picture": _load(results.folder / example["picture"], side)}
        for example in results.examples.get(kind, ())
    ]


def worst_mistakes(results: EvaluationResults) -> list[Card]:
    """Images whose grade the model mistook, with a `title` that says how."""
    names, mistakes = grade_names(results.shown.task), []
    for card in cards(results, "mistakes"):
        sure = percentage(card["probability"])
        title = f"Reader: {names[card['actual']]}. Model: {names[card['predicted']]}, confidence {sure}."
        mistakes.append(card | {"title": title, "link": cases_link(case=card["row"])})
    return mistakes


def _load(path: Path, side: int) -> Picture:
    try:
        with Image.open(path) as image:
            return picture_of(image.convert("RGB") if image.mode != "L" else image, side)
    except (UnidentifiedImageError, OSError):
        return Picture("", "This picture cannot be shown.")
