"""Which findings were drawn around in the images of a split: the column `findings` of the sample."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.metrics.grounding import box_mask

FINDINGS_COLUMN = "findings"
"""JSON list per row of `{"finding": name, "box": [left, top, right, bottom]}`, shares of the upright image's sides."""


@dataclass(frozen=True)
class Region:
    """All boxes of one finding in one image: row of the split, boxes (K, 4) in pixels of the square that is encoded."""

    row: int
    finding: str
    boxes: np.ndarray

    def mask(self, side: int) -> np.ndarray:
        """(side, side) bool."""
        return box_mask(self.boxes, (side, side))


def regions_of(split: EmbeddedSplit, transform: Transform) -> list[Region]:
    """By row, then in the order of the cell; without what the transform cuts off. Empty where no row has boxes.

    Raises:
        UserError: something that calls itself a box is none.
    """
    if FINDINGS_COLUMN not in split.rows:
        return []
    regions = []
    for row, cell in enumerate(split.rows[FINDINGS_COLUMN].fillna("")):
        height, width = (int(split.rows[side].iloc[row]) for side in ("height", "width"))
        for finding, boxes in _boxes(cell, str(split.rows["img_path"].iloc[row])).items():
            region = Region(row, finding, transform.place_boxes(np.array(boxes), height, width))
            if region.mask(transform.image_size).any():
                regions.append(region)
    return regions


def _boxes(cell: str, name: str) -> dict[str, list[list[float]]]:
    """Finding to its boxes. A cell that is no JSON list is a report's text or a label, as other data have there."""
    try:
        entries = json.loads(cell)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, list[list[float]]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and "box" in entry:
            found.setdefault(str(entry.get("finding", "")), []).append(_box(entry["box"], name))
    return found


def _box(box: Any, name: str) -> list[float]:
    try:
        left, top, right, bottom = (float(edge) for edge in box)
    except (TypeError, ValueError):
        left = top = right = bottom = np.nan
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise UserError(
            f"{name}: {FINDINGS_COLUMN} has the box {box!r}, which must be left, top, right, bottom as shares (0 to 1) "
            "of the image's width and height; mend or remove that column"
        )
    return [left, top, right, bottom]
