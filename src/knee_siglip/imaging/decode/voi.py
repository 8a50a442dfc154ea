"""The first half of a DICOM's greyscale pipeline: stored values to modality values, and those to 8-bit greys."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from knee_siglip.imaging.decode.exposure import to_uint8
from knee_siglip.imaging.decode.header import Header
from knee_siglip.imaging.decode.lookup import Table, table_in

WINDOW = ("WindowCenter", "WindowWidth")


@dataclass(frozen=True)
class Modality:
    """The modality step (PS3.3, C.11.1): a table, or slope and intercept.

    known: False where an element was unusable. What a window or VOI table says of these values is then void.
    """

    table: Table | None = None
    slope: float = 1.0
    intercept: float = 0.0
    known: bool = True

    @classmethod
    def of(cls, header: Header, low: float, high: float) -> "Modality":
        """Read it from the header. low, high: of the stored values.

        Raises:
            ImageError: the slope is 0, which leaves no image.
        """
        known = True
        for item in header.items("ModalityLUTSequence")[:1]:
            if table := table_in(header, item, "LUT", low, high):
                return cls(table)
            header.doubt("ModalityLUTSequence")
            known = False
        slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
        if slope == 0 or not math.isfinite(slope or 1):
            raise header.unusable("RescaleSlope")
        known = known and not {"RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"} & set(header.doubtful)
        return cls(None, 1.0 if slope is None else slope, intercept or 0.0, known)

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Stored values to modality values of the same shape, in float64 unless nothing is to be done."""
        if self.table is not None:
            return self.table.look_up(stored)
        if (self.slope, self.intercept) == (1, 0):
            return stored
        return stored.astype(np.float64) * self.slope + self.intercept

    def extent(self, low: float, high: float) -> tuple[float, float]:
        """The smallest and the largest modality value of stored values from low to high."""
        ends = self.apply(np.array([low, high])) if self.table is None else self.table.entries
        return float(ends.min()), float(ends.max())


def presentations(
    values: np.ndarray, header: Header, low: float, high: float
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """What the header offers to show modality values by, in a viewer's order: keywords, and a grey for each value.

    values: (N,); low, high: between which they can lie. The greys are uint8 (N,).
    """
    tables = (table_in(header, item, "LUT", low, high) for item in header.items("VOILUTSequence"))
    table = next((table for table in tables if table is not None and table.entries.any()), None)
    if table is not None:
        # the table's own maximum: descriptors name 16 bits for 12-bit tables, and 8 for entries beyond 255
        yield ("VOILUTSequence",), to_uint8(table.look_up(values)[None], 0, float(table.entries.max()))[0]
    elif header.items("VOILUTSequence"):
        header.doubt("VOILUTSequence")
    greys = _window(values, header)
    if greys is not None:
        yield WINDOW, greys


def _window(values: np.ndarray, header: Header) -> np.ndarray | None:
    """The first usable window, DICOM PS3.3 C.11.2.1; None where there is none.

    values: (N,); returns uint8 (N,).
    """
    function = header.code("VOILUTFunction", ("LINEAR", "LINEAR_EXACT", "SIGMOID")) or "LINEAR"
    least = 1 if function == "LINEAR" else 0
    pairs = list(zip_longest(*map(header.numbers, WINDOW)))
    usable = [(centre, width) for centre, width in pairs if centre is not None and width is not None and width > least]
    if pairs and usable[:1] != pairs[:1]:
        header.doubt(*WINDOW)
    if not usable:
        return None
    centre, width = usable[0]
    if function == "SIGMOID":
        steepness = np.clip(-4 * (values.astype(np.float64) - centre) / width, -80, 80)
        return to_uint8(1 / (1 + np.exp(steepness))[None], 0, 1)[0]
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return to_uint8(values[None], centre - width / 2, centre + width / 2)[0]
