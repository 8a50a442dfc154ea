"""DICOM radiographs to grey. Only pixels leave this module: no name, no description, not even in an error."""

import io
import re
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from knee_siglip.imaging.decode.decoded import Decoded, ImageError, check_size, shown
from knee_siglip.imaging.decode.header import Header, normalise
from knee_siglip.imaging.decode.pixels import FLOATS, several_frames, stored_values
from knee_siglip.imaging.decode.presentation import grey_of
from knee_siglip.imaging.decode.raster import is_picture

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

SUFFIXES = {".dcm", ".dicom", ".dic"}

FIRST_ELEMENT = re.compile(rb"\x02\0[\0-\x10]\0(UL|OB|UI)|\x08\0[\0-\x18]\0", re.DOTALL)
"""How a data set without a preamble begins: group 2, or group 8's length, character set, image type or class."""

ELEMENTS = [
    *("SOPClassUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    "PixelData",
    *FLOATS,
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTSequence"),
    *("PresentationLUTShape", "PaletteColorLookupTableUID"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Data", "Descriptor")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
"""All that is read: names, dates and descriptions never get into memory as values."""

MAX_INFLATED = 1 << 29
"""Bytes that a deflated data set may have: `MAX_PIXELS` in 16 bits, and more."""


def is_dicom(data: bytes, path: Path) -> bool:
    """By the magic word after the preamble; without one (old files) by the first element or the file's ending."""
    if data[128:132] == b"DICM" or FIRST_ELEMENT.match(data):
        return True
    return path.suffix.lower() in SUFFIXES and not is_picture(data)


def decode_dicom(data: bytes, path: Path) -> Decoded:
    """Rescale, VOI LUT or window, MONOCHROME1 inverted: what a viewer shows first.

    Raises:
        ImageError: no DICOM, no pixels, several frames, damaged, or no codec for its transfer syntax.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote header values
        _silence()
        try:
            header = Header(_read(data, path), path)
            _check(header)
            stored = stored_values(header)
            bits = int(header.dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
            kind = f"DICOM {header.dataset.PhotometricInterpretation}"
            return Decoded(grey_of(stored, header), bits, kind, tuple(header.doubtful))
        except ImageError:
            raise
        except MemoryError:
            raise ImageError(f"{shown(path)}: DICOM that takes more memory to decode than there is") from None
        except Exception as error:  # parsers raise anything on damaged files; their messages quote header values
            raise ImageError(f"{shown(path)}: DICOM that cannot be decoded ({type(error).__name__}): damaged") from None


@cache
def _silence() -> None:
    """pydicom logs, and GDCM prints to stderr, what they dislike: header values too."""
    import logging

    import gdcm

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    for switch in ("DebugOff", "WarningOff", "ErrorOff", "StreamOff"):
        getattr(gdcm.Trace, switch, lambda: None)()


def _read(data: bytes, path: Path) -> "Dataset":
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

    start = data.find(b"\x02\x00\x10\x00UI", 0, 4096)
    if start >= 0 and data.startswith(DeflatedExplicitVRLittleEndian.encode(), start + 8):
        _check_inflated(data, path)
    dataset = dcmread(io.BytesIO(data), force=True, specific_tags=list(ELEMENTS))
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default where a bare data set names none
    return dataset


def _check_inflated(data: bytes, path: Path) -> None:
    """Inflate once in pieces and count: pydicom would inflate a bomb in one go."""
    from pydicom.filereader import read_dataset

    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    start = stream.tell()  # the meta group is never deflated
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size, rest = 0, data[start:]
    while rest and not inflater.eof:
        size += len(inflater.decompress(rest, 1 << 24))
        rest = inflater.unconsumed_tail
        if size > MAX_INFLATED:
            raise ImageError(f"{shown(path)}: DICOM that inflates to more than {MAX_INFLATED:,} bytes")


def _check(header: Header) -> None:
    """Refuse what is no single frame of usable pixels, and normalise the header of what is."""
    dataset, path, syntax = header.dataset, header.path, header.dataset.file_meta.TransferSyntaxUID
    if not _decodable(syntax) and ("PixelData" in dataset or not syntax.is_transfer_syntax):
        raise ImageError(
            f"{shown(path)}: DICOM in transfer syntax {_name(syntax)}, which is not supported; "
            "convert it to Explicit VR Little Endian or JPEG 2000 with another tool (gdcmconv or dcmdjpeg, say)"
        )
    if not any(keyword in dataset for keyword in ("PixelData", *FLOATS)):
        what = _name(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
        kind = f" (it is: {what})" if what.endswith(")") else ""
        raise ImageError(f"{shown(path)}: DICOM without (complete) pixel data{kind}, or no DICOM at all")
    normalise(header)
    check_size(int(dataset.Columns), int(dataset.Rows), path)
    frames = header.number("NumberOfFrames") or 1
    if frames > 1:
        raise several_frames(f"{frames:g}", path)
    dataset.NumberOfFrames = 1


def _decodable(syntax: "UID") -> bool:
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _name(uid: str) -> str:
    """A UID with its name in the standard; nothing else of a header is fit to be shown."""
    from pydicom.uid import UID

    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        return "of no valid UID"
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
