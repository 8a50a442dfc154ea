"""The elements of a DICOM header that the pixels need, read as leniently as they can be without guessing.

Optional elements that are unusable (no number, out of range, of the wrong length) are passed over; those without which
no pixel is certain are named in an `ImageError`. Neither quotes a value: it may name a patient.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_siglip.imaging.decode.decoded import ImageError, shown

if TYPE_CHECKING:
    from pydicom import Dataset

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A decimal string (PS3.5, 6.2). Python's `float` would take `nan` and `1_000` as well."""

GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

ALLOCATED = (1, 8, 16, 32)
"""Bits that an integer sample may take up (PS3.5, 8.1.1)."""


class Header:
    """A data set's elements.

    doubtful: keywords of those that were passed over, or taken as the standard's most common value, in the order in
    which they were met.
    """

    def __init__(self, dataset: "Dataset", path: Path) -> None:
        self.dataset = dataset
        self.path = path
        self.doubtful: list[str] = []

    @property
    def little_endian(self) -> bool:
        """The data set's byte order, which words in bytes have as well."""
        return self.dataset.original_encoding[1] is not False

    def doubt(self, *keywords: str) -> None:
        """Remember these elements, each once."""
        self.doubtful += [keyword for keyword in keywords if keyword not in self.doubtful]

    def unusable(self, keyword: str) -> ImageError:
        """The error that names the element."""
        return ImageError(f"{shown(self.path)}: DICOM without a usable {keyword} element: it cannot be decoded")

    def texts(self, keyword: str) -> list[str]:
        """An element's values as text; none where it is absent or empty."""
        element = self.dataset.get_item(keyword) if keyword in self.dataset else None
        value: Any = "" if element is None or element.value is None else element.value
        if isinstance(value, bytes):  # unconverted: pydicom raises on a list with a single bad number
            value = value.decode("ascii", "replace").split("\\")
        values = [value] if isinstance(value, str | int | float) else list(value)
        texts = [str(each).strip(" \0") for each in values]
        return texts if any(texts) else []

    def numbers(self, keyword: str) -> list[float | None]:
        """The values of a decimal or integer string, None for what is no number."""
        return [float(text) if NUMBER.fullmatch(text) else None for text in self.texts(keyword)]

    def number(self, keyword: str) -> float | None:
        """The first of `numbers`; None where there is none."""
        values = self.numbers(keyword)
        if values and values[0] is None:
            self.doubt(keyword)
        return values[0] if values else None

    def code(self, keyword: str, known: tuple[str, ...]) -> str:
        """A code string in upper case; "" where it is none of the `known`."""
        texts = self.texts(keyword)
        if texts and texts[0].upper() in known:
            return texts[0].upper()
        if texts:
            self.doubt(keyword)
        return ""

    def whole(self, keyword: str) -> int | None:
        """A binary integer; None where there is none."""
        try:
            value = self.dataset.get(keyword)
        except Exception:  # pydicom raises anything on a value of the wrong length or type
            value = None
        return value if isinstance(value, int) else None

    def whole_or(self, default: int, keyword: str) -> int:
        """The same, or the default and a doubt."""
        value = self.whole(keyword)
        if value is None:
            self.doubt(keyword)
        return default if value is None else value

    def extent(self) -> tuple[int, int]:
        """The smallest and the largest value that the bits stored can hold."""
        bits = int(self.dataset.BitsStored)
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.dataset.PixelRepresentation else (0, 2**bits - 1)

    def items(self, keyword: str) -> "list[Dataset]":
        """A sequence's items."""
        try:
            return list(self.dataset.get(keyword) or [])
        except Exception:  # damaged sequences raise anything
            self.doubt(keyword)
            return []


def normalise(header: Header) -> None:
    """Complete and correct the elements that pydicom's decoders insist on.

    Raises:
        ImageError: an element is missing, unusable or contradicts another, and nothing says what it should be.
    """
    dataset = header.dataset
    for keyword in ("Rows", "Columns"):
        if header.whole(keyword) is None:
            raise header.unusable(keyword)
    dataset.SamplesPerPixel = samples = header.whole_or(1, "SamplesPerPixel")
    if samples not in (1, 3):
        raise header.unusable("SamplesPerPixel")
    dataset.PhotometricInterpretation = _interpretation(header, samples)
    if samples == 3:
        dataset.PlanarConfiguration = header.whole_or(0, "PlanarConfiguration")
    if "PixelData" in dataset:
        _normalise_bits(header)


def _interpretation(header: Header, samples: int) -> str:
    keyword = "PhotometricInterpretation"
    code = header.code(keyword, GREY + COLOUR)
    if code in (GREY if samples == 1 else COLOUR):
        return code
    if samples == 1 and not header.texts(keyword):
        header.doubt(keyword)
        return "MONOCHROME2"
    if code == "MONOCHROME2":  # a grey image saved as three equal samples
        header.doubt(keyword)
        return "RGB"
    raise header.unusable(keyword)


def _normalise_bits(header: Header) -> None:
    dataset = header.dataset
    allocated, bits = header.whole("BitsAllocated"), header.whole("BitsStored")
    if allocated not in ALLOCATED:
        raise header.unusable("BitsAllocated")
    if bits is None or not 1 <= bits <= allocated:
        raise header.unusable("BitsStored")
    dataset.PixelRepresentation = int(header.whole_or(0, "PixelRepresentation") == 1)
    high = header.whole_or(bits - 1, "HighBit")
    if not bits - 1 <= high < allocated:
        header.doubt("HighBit")
        high = bits - 1
    dataset.HighBit = high
