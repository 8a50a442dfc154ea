"""Deep greys to 8 bits: the exposed field of a radiograph sets black and white."""

import math
from collections.abc import Iterator

import numpy as np

TAIL_PERCENT = 0.1
"""Share of the pixels at either end that may clip: hot pixels do not squeeze the knee into a few greys, a lead marker
(0.2 % of the area and more) stays."""

SAMPLE_SIDE = 400
"""Percentiles and collimator borders are found on at most this many rows and columns of the image."""

LEVEL_SHARE = 0.01
"""Width of a level of the border search, as a share of the greys (1st to 99th percentile) in the image's centre."""

LEVELS = 600
"""The centre's range has 100 of them, from the 200th on; what lies beyond the ends counts as the last."""

RING_SHARE = 0.04
"""A level that fills this share of the image's edge is flat: collimator, padding or air, not anatomy."""

PEAK_SHARE = 0.02
"""Share of the image that one level of a border fills at least, where it does not stand out from its neighbours ..."""

PEAK_RATIO = 4
"""... by this factor: a smooth gradient is flat along the edge too, but fills each level alike."""

PENUMBRA_SHARE = 0.012
"""A collimator's soft edge, as a share of the longer side: about 4 mm of a 30 cm detector."""

MIN_FIELD_SHARE = 0.10
"""Where less than this would be left, there is no collimator: the whole image counts."""

MIN_PART_SHARE = 0.02
"""Smaller islands in the border are side markers and burnt-in letters."""

NESTED_BORDERS = 2
"""Padding around a collimator's border."""


def stretch(values: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """Deep greys (H, W), integer or float, to uint8: `grey_range` becomes 0-255; NaN becomes 0."""
    return to_uint8(values, *grey_range(values, usable))


def grey_range(values: np.ndarray, usable: np.ndarray | None = None) -> tuple[float, float]:
    """The greys (low, high) that become black and white: percentiles 0.1 and 99.9 of the exposed field.

    The bits that a detector really uses are not known from the file (12 in a 16-bit container, an offset, ...), so the
    range is the image's own. Fewer than 256 integer levels are only shifted: noise of a flat image is not blown up.

    values: (H, W), integer or float; usable: bool (H, W), False where a pixel is padding or transparent.
    """
    sample = thinned(values)
    counted = np.ones(sample.shape, dtype=bool) if usable is None else thinned(usable)
    if values.dtype.kind == "f":
        counted = counted & np.isfinite(sample)
    if not counted.any():
        return 0.0, 0.0
    low, high = np.percentile(sample[exposed_field(sample, counted)], [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return float(low), float(high if values.dtype.kind == "f" else max(high, low + 255))


def thinned(values: np.ndarray) -> np.ndarray:
    """Every n-th row and column of (H, W), at most `SAMPLE_SIDE` of either."""
    steps = [math.ceil(side / SAMPLE_SIDE) for side in values.shape]
    return values[tuple(slice(step // 2, None, step) for step in steps)]


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] linearly to 0-255, clipped and rounded; all 0 where the range is empty."""
    grey = np.zeros(values.shape, dtype=np.uint8)
    if not high > low:
        return grey
    work: type[np.floating] = np.float32 if values.dtype.kind in "ui" and values.dtype.itemsize <= 2 else np.float64
    for rows in bands(values.shape):  # the floats of a whole long-leg image would take a gigabyte
        scaled = values[rows].astype(work)
        scaled -= work(low)
        scaled *= work(255 / (high - low))
        np.clip(scaled, 0, 255, out=scaled)
        grey[rows] = np.rint(np.nan_to_num(scaled, copy=False), out=scaled)
    return grey


def bands(shape: tuple[int, ...], pixels: int = 1 << 20) -> Iterator[slice]:
    """Slices of rows of about `pixels` pixels each."""
    rows = max(1, pixels // max(1, shape[1]))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def exposed_field(values: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """The exposed field: bool (H, W), False in flat regions connected to the image's edge.

    Collimator borders of any shape, black or white, a little noisy, and padding around them are left out, with their
    soft edge; so is air that reaches the edge, which moves no percentile of the knee.

    values: (H, W), some 400 rows and columns (`grey_range` thins them out); usable: as there.
    """
    from scipy.ndimage import maximum_filter  # a sixth of a second to import, for deep greys alone

    usable = np.ones(values.shape, dtype=bool) if usable is None else usable
    levels = _levels(values, usable)
    if levels is None:
        return usable
    field = usable
    penumbra = 2 * round(PENUMBRA_SHARE * max(values.shape)) + 1
    for _ in range(NESTED_BORDERS):
        border = _flat_border(levels, field)
        if border is None:
            break
        field = field & (maximum_filter(border.view(np.uint8), penumbra) == 0)
    field = _large_parts(field)
    return field if field.mean() >= MIN_FIELD_SHARE else usable


def _levels(values: np.ndarray, usable: np.ndarray) -> np.ndarray | None:
    """Greys in steps of `LEVEL_SHARE` of the centre's range, (H, W), 6 to LEVELS - 7; None where that is flat."""
    height, width = values.shape
    centre = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    if min(height, width) < 32 or not usable[centre].any():
        return None
    low, high = np.percentile(values[centre][usable[centre]], [1, 99]).tolist()
    if not high > low:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (values.astype(np.float64) - low) / (LEVEL_SHARE * (high - low)) + LEVELS // 3
    return np.clip(np.nan_to_num(steps), 6, LEVELS - 7).astype(np.int16)


def _flat_border(levels: np.ndarray, field: np.ndarray) -> np.ndarray | None:
    """Pixels connected to the field's edge at one of the edge's main levels, plus or minus one level."""
    from scipy.ndimage import label

    wide = np.pad(field, 1)
    ring = field & ~(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])
    on_ring = np.bincount(levels[ring], minlength=LEVELS)
    main = (
        (on_ring > 0)
        & (on_ring >= RING_SHARE * on_ring.sum())
        & _stands_out(np.bincount(levels[field], minlength=LEVELS))
    )
    if not main.any():
        return None
    near = main | np.roll(main, 1) | np.roll(main, -1)
    labels, parts = label(field & near[levels])
    reaches = np.zeros(parts + 1, dtype=bool)
    reaches[labels[ring]] = True
    reaches[0] = False
    border: np.ndarray = reaches[labels]
    return border


def _stands_out(counts: np.ndarray) -> np.ndarray:
    """Levels that fill much of the image, or far more of it than the levels beside them: no part of a gradient.

    counts: pixels per level; returns bool of the same shape.
    """
    beside = sum(np.roll(counts, step) for step in (-6, -5, -4, 4, 5, 6)) / 6
    peaks: np.ndarray = (counts >= PEAK_SHARE * counts.sum()) | (counts >= PEAK_RATIO * beside)
    return peaks


def _large_parts(field: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    labels, _ = label(field)
    sizes = np.bincount(labels.ravel())
    large = sizes >= MIN_PART_SHARE * field.size
    large[0] = False
    parts: np.ndarray = large[labels]
    return parts
