"""DICOM lookup tables (modality, VOI, presentation, palette) as devices really write them.

A descriptor holds the number of entries, the value that takes the first entry, and the bits per entry (PS3.3,
C.11.1.1). Real files name 16 bits for 12-bit tables, pack 8-bit entries two to a word, or write a signed first value as
unsigned, so the table's own length and values decide, not the descriptor alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knee_siglip.imaging.decode.header import Header


@dataclass(frozen=True)
class Table:
    """A lookup table. first: the value that takes the first entry; entries: int64 (N,), never negative."""

    first: int
    entries: np.ndarray

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value, float64, of the values' shape; values beyond either end take the entry there."""
        # in float64: a signed first value, or a negative value, would wrap round in the table's own type
        position = np.clip(np.nan_to_num(values.astype(np.float64)) - self.first, 0, len(self.entries) - 1)
        return self.entries[np.rint(position).astype(np.intp)].astype(np.float64)


def table_in(header: Header, item: Any, name: str, low: float, high: float) -> Table | None:
    """The table in the elements `name`Descriptor and `name`Data of `item`: a sequence's, or the data set itself.

    low, high: as in `read_table`. None where an element is missing or unusable.
    """
    try:
        descriptor, data = item.get(f"{name}Descriptor"), item.get(f"{name}Data")
    except Exception:  # pydicom raises anything on a value of the wrong length or type
        return None
    if descriptor is None or data is None:
        return None
    return read_table(descriptor, data, header.little_endian, low, high)


def read_table(descriptor: Any, data: Any, little_endian: bool, low: float, high: float) -> Table | None:
    """The table of a descriptor and its data as pydicom gives them; None where they do not fit each other.

    low, high: the smallest and the largest value that is to be looked up.
    """
    numbers, words = _words(descriptor, little_endian), _words(data, little_endian)
    if numbers is None or words is None or len(numbers) != 3:
        return None
    count = int(numbers[0]) or 2**16  # PS3.3, C.11.1.1: 65,536 does not fit into the descriptor
    if len(words) < count and numbers[2] <= 8:
        words = words.astype("<u2").view(np.uint8)  # two entries to a word, the first in its low byte
    if len(words) < count:
        return None
    return Table(_first(int(numbers[1]), count, low, high), words[:count].astype(np.int64))


def _words(value: Any, little_endian: bool) -> np.ndarray | None:
    """Bytes, an integer or a list of them as uint16 (N,); None for anything else."""
    if isinstance(value, bytes):
        return np.frombuffer(value + b"\0" * (len(value) % 2), "<u2" if little_endian else ">u2").astype(np.uint16)
    try:
        return (np.atleast_1d(np.asarray(value, dtype=np.int64)) & 0xFFFF).astype(np.uint16)
    except (TypeError, ValueError):
        return None


def _first(unsigned: int, count: int, low: float, high: float) -> int:
    """The first value as signed or unsigned, whichever puts more of the table where the values are.

    Whether its 16 bits are signed follows from the pixels (PS3.3, C.11.1.1); many files name the wrong type.
    """

    def overlap(first: int) -> float:
        return min(first + count - 1, high) - max(first, low)

    signed = unsigned - 2**16 if unsigned >= 2**15 else unsigned
    return signed if overlap(signed) > overlap(unsigned) else unsigned
