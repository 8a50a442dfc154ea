"""Detects radiographs that are shown inverted: dark bone on a bright background.

Two features tell, and each changes sign with the image: the background in the corners and at the sides is
darker than the bone, and the joint space is a dark band between bright bones. They are measured on the *ranks* of the
grey values, not the values, so that exposure, gamma and window hardly matter: a washed-out or faint
image has the ranks of a good one. Letterboxes, collimator borders and tilted frames are left out first.
"""

import math

import numpy as np
from PIL import Image

SIDE = 64
"""Side of the thumbnail that is judged: the joint space is about 4 of its pixels high."""

WEIGHTS = (9.29, 0.75, 30.92)
"""Of `features`, in their order: a logistic regression without constant, because an inverted image's features are the
image's own with the opposite sign. Fitted by scripts/fit_inversion.py on training patients only."""

CAUTION = 3.0
"""Log odds that the evidence must outweigh before an image counts as inverted. An inverted image that is missed stays
as it was; a normal one that is called inverted would be spoiled."""

TAIL = 0.05
"""Share of the pixels beyond either of the percentiles that `_gap` compares with the median."""

WIDE = 1.15
"""Width over height from which a film may hold two knees side by side."""

ENDS = [*range(12), *range(SIDE - 12, SIDE)]
"""First and last rows of the thumbnail."""


def _windows(side: int) -> np.ndarray:
    """(SIDE - 12, SIDE) ones and zeros: windows of `side` pixels around all but the first and last six."""
    distance = np.arange(6, SIDE - 6)[:, None] - np.arange(SIDE)
    return (np.abs(distance) <= side // 2).astype(np.float32)


FINE, COARSE = _windows(3), _windows(11)
FINE_AREA, COARSE_AREA = 3**2, 11**2

FLAT = 3
"""Greys; a row or column that varies no more belongs to a border, not to the radiograph."""


def inversion_probability(grey: np.ndarray) -> float:
    """Probability that the radiograph is shown inverted (bright background, dark bone).

    grey: uint8 (H, W), any size, upright, before any contrast step. Returns 0 to 1; above 0.5 means inverted. Where
    nothing can be seen (a constant image) the answer is well below 0.5.
    """
    log_odds = float(_evidence(grey) @ np.array(WEIGHTS)) - CAUTION
    return 1 / (1 + math.exp(-log_odds))


def _evidence(grey: np.ndarray) -> np.ndarray:
    """`features`; of a wide film the mean of its own and its halves'.

    Two knees have their dark background in the middle and bone at the sides: as a whole a normal film may look
    inverted, but each half is a knee like any other. Half of a single knee says little, the whole then decides.
    """
    image = _shrunk(grey)
    pixels = np.asarray(image)
    box = left, top, right, bottom = _without_borders(pixels)
    whole = _features(image, pixels, box)
    if right - left < WIDE * (bottom - top):
        return whole
    middle = max(1, (left + right) * grey.shape[1] // (2 * image.width))
    halves = [features(half) for half in (grey[:, :middle], grey[:, middle:])]
    return (whole + (halves[0] + halves[1]) / 2) / 2


def features(grey: np.ndarray) -> np.ndarray:
    """grey: uint8 (H, W). Returns float64 (3,): corners, sides, gap; all 0 where nothing can be seen."""
    image = _shrunk(grey)
    pixels = np.asarray(image)
    return _features(image, pixels, _without_borders(pixels))


def _features(image: Image.Image, pixels: np.ndarray, box: "Box") -> np.ndarray:
    """`features` of a shrunk image, and its pixels; box: without its borders."""
    ranks, seen = _ranks(*_thumbnail(image, pixels, box))
    ends = ranks[ENDS]
    corners = (ends[:, :8].mean() + ends[:, -8:].mean()) / 2
    sides = (ranks[:, :6].mean() + ranks[:, -6:].mean()) / 2 - ranks[:, 16:48].mean()
    return np.array([corners, sides, _gap(ranks)], dtype=np.float64) / max(seen, 1)


def _gap(ranks: np.ndarray) -> float:
    """Skewness of details as wide as the joint space (3 pixels against the 11 around them); negative: mostly dark."""
    fine, coarse = (box @ ranks @ box.T for box in (FINE, COARSE))
    details = np.sort(COARSE_AREA * fine - FINE_AREA * coarse, axis=None)
    last = details.size - 1
    places = [round(TAIL * last), details.size // 2, round((1 - TAIL) * last)]
    low, middle, high = details[places].tolist()
    return float(high + low - 2 * middle) / (COARSE_AREA * FINE_AREA)


def _ranks(thumbnail: np.ndarray, outside: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Darker pixels less brighter ones, float32 (SIDE, SIDE), 0 outside the radiograph; and the number of all pixels.

    All sums of them that are computed here stay below 2^24, so they are exact, on any machine.
    """
    counts = np.bincount(thumbnail.ravel() if outside is None else thumbnail[~outside], minlength=256)
    below = counts.cumsum()
    seen = int(below[-1])
    ranks = (2 * below - counts - seen).astype(np.float32)[thumbnail]
    return ranks if outside is None else np.where(outside, np.float32(0), ranks), seen


def _thumbnail(image: Image.Image, pixels: np.ndarray, box: "Box") -> tuple[np.ndarray, np.ndarray | None]:
    """The radiograph inside the box, uint8 (SIDE, SIDE), and where a tilted frame still shows, bool; None: nowhere."""
    frame = _frame_grey(pixels, box)
    box = _inset(box if frame is None else _without_frame(pixels, box, frame), image.size)
    thumbnail = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    return thumbnail, None if frame is None else np.abs(thumbnail - frame) < FLAT


def _shrunk(grey: np.ndarray) -> Image.Image:
    """The whole image in a whole fraction of its size, its shorter side at least 2 x SIDE where it was so before."""
    step = max(1, min(grey.shape) // (8 * SIDE))
    image = Image.fromarray(np.ascontiguousarray(grey[::step, ::step]))
    shrink = max(1, min(image.size) // (2 * SIDE))
    return image.reduce(shrink) if shrink > 1 else image


Box = tuple[int, int, int, int]
"""left, top, right, bottom, as Pillow counts them."""


def _without_borders(pixels: np.ndarray) -> Box:
    """Crop rows and columns of a single grey: letterbox, collimator."""
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    if all(edge.max() - edge.min() > FLAT for edge in edges):  # mostly so, and then there is nothing to crop
        return 0, 0, pixels.shape[1], len(pixels)
    top, bottom = _span(np.ptp(pixels, axis=1) <= FLAT)
    left, right = _span(np.ptp(pixels[top:bottom], axis=0) <= FLAT)
    inner_top, inner_bottom = _span(np.ptp(pixels[top:bottom, left:right], axis=1) <= FLAT)
    return left, top + inner_top, right, top + inner_bottom


def _without_frame(pixels: np.ndarray, box: Box, frame: np.float32) -> Box:
    """Crop rows and columns that are mostly frame: what `_without_borders` leaves of a tilted one."""
    left, top, right, bottom = box
    empty = np.abs(pixels[top:bottom, left:right] - frame) < FLAT
    first_row, last_row = _span(empty.mean(axis=1) > 0.5)
    first_column, last_column = _span(empty.mean(axis=0) > 0.5)
    if (last_row - first_row) * 5 < bottom - top or (last_column - first_column) * 5 < right - left:
        return box
    return left + first_column, top + first_row, left + last_column, top + last_row


def _frame_grey(pixels: np.ndarray, box: Box) -> np.float32 | None:
    """The grey shared by all four corners of the box but not its middle: a frame around the radiograph, or air.

    None where there is none. In an overexposed image bone and corners share white.
    """
    left, top, right, bottom = box
    corners = sorted(pixels[[top, top, bottom - 1, bottom - 1], [left, right - 1, left, right - 1]].tolist())
    if corners[3] - corners[0] > FLAT:
        return None
    grey = np.float32((corners[1] + corners[2]) / 2)
    rows, columns = (bottom - top) // 4, (right - left) // 4
    middle = pixels[top + rows : bottom - rows, left + columns : right - columns]
    return None if (np.abs(middle - grey) < FLAT).mean() > 0.25 else grey


def _span(empty: np.ndarray) -> tuple[int, int]:
    """First and last + 1 place that is not empty; everything where all is empty."""
    full = np.flatnonzero(~empty)
    return (int(full[0]), int(full[-1]) + 1) if full.size else (0, len(empty))


def _inset(box: Box, size: tuple[int, int]) -> Box:
    """One pixel less on every side that was cut: the border has bled into it."""
    left, top, right, bottom = box
    if min(right - left, bottom - top) <= 8:
        return box
    return left + (left > 0), top + (top > 0), right - (right < size[0]), bottom - (bottom < size[1])
