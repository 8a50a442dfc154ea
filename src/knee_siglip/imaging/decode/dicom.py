"""DICOM radiographs to grey. Only pixels leave this module: no name, no description, not even in an error."""

import io
import re
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knee_siglip.imaging.decode.codestream import decode_apart, decode_extended_jpeg, frame_size
from knee_siglip.imaging.decode.decoded import Decoded, ImageError, check_size, shown
from knee_siglip.imaging.decode.presentation import grey_of
from knee_siglip.imaging.decode.raster import is_picture

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = {".dcm", ".dicom", ".dic"}

FIRST_ELEMENT = re.compile(rb"\x02\0[\0-\x10]\0(UL|OB|UI)|\x08\0[\0-\x18]\0", re.DOTALL)
"""How a data set without a preamble begins: group 2, or group 8's length, character set, image type or class."""

ELEMENTS = [
    *("SOPClassUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PaletteColorLookupTableUID"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Data", "Descriptor")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
"""All that is read: names, dates and descriptions never get into memory as values."""

KINDS = {"MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}

MAX_INFLATED = 1 << 29
"""Bytes that a deflated data set may have: `MAX_PIXELS` in 16 bits, and more."""

RLE = "1.2.840.10008.1.2.5"
DECODERS = {
    **{f"1.2.840.10008.1.2.4.{number}": "pillow" for number in (50, 51)},
    **{f"1.2.840.10008.1.2.4.{number}": "gdcm" for number in (57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": "pyjpegls" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "pylibjpeg" for number in (90, 91, 201, 202, 203)},
}
"""One decoder per transfer syntax: tried in turn, a damaged file would come out as another one saw it."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


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
            dataset = _read(data, path)
            _check(dataset, path)
            stored = _stored(dataset, path)
            if stored.shape[:2] != (dataset.Rows, dataset.Columns) or stored.shape[2:] not in ((), (3,)):
                raise ImageError(
                    f"{shown(path)}: DICOM with pixels of shape {stored.shape}; one grey or RGB frame is read"
                )
            photometric = dataset.get("PhotometricInterpretation")
            kind = f"DICOM {photometric if photometric in KINDS else 'other'}"
            return Decoded(grey_of(stored, dataset), int(dataset.BitsStored), kind)
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


def _check(dataset: "Dataset", path: Path) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        usable = get_decoder(syntax).is_available
    except NotImplementedError:
        usable = False
    if not usable and ("PixelData" in dataset or not syntax.is_transfer_syntax):
        raise ImageError(
            f"{shown(path)}: DICOM in transfer syntax {_name(syntax)}, which is not supported; "
            "convert it to Explicit VR Little Endian or JPEG 2000 with another tool (gdcmconv or dcmdjpeg, say)"
        )
    if "PixelData" not in dataset:
        what = _name(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
        kind = f" (it is: {what})" if what.endswith(")") else ""
        raise ImageError(f"{shown(path)}: DICOM without (complete) pixel data{kind}, or no DICOM at all")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"{shown(path)}: DICOM with {frames} frames; a radiograph has one")
    check_size(int(dataset.Columns), int(dataset.Rows), path)


def _stored(dataset: "Dataset", path: Path) -> np.ndarray:
    """Stored values (H, W), or RGB (H, W, 3), without what older files keep in the unused bits."""
    from pydicom.encaps import get_frame

    syntax, bits = dataset.file_meta.TransferSyntaxUID, int(dataset.BitsStored)
    if syntax.is_encapsulated:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if syntax != RLE and frame_size(frame) != (dataset.Rows, dataset.Columns):  # decoders believe the frame: a bomb
            raise ImageError(
                f"{shown(path)}: DICOM that is damaged: its header and its compressed image differ in size"
            )
        if syntax == JPEG_EXTENDED and bits > 8:
            shape = int(dataset.Rows), int(dataset.Columns)
            values = decode_apart(lambda: decode_extended_jpeg(frame, *shape, bits), shape, "u2")
            sign = 16 - bits
            return (values << sign).view(np.int16) >> sign if dataset.PixelRepresentation == 1 else values
        if syntax in DECODERS:
            dataset.pixel_array_options(decoding_plugin=DECODERS[syntax])
        if DECODERS.get(syntax) == "gdcm":
            shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)[: 2 if dataset.SamplesPerPixel == 1 else 3]
            kind = "i" if dataset.PixelRepresentation == 1 else "u"
            return decode_apart(lambda: dataset.pixel_array, shape, f"{kind}{dataset.BitsAllocated // 8}")
    unused = int(dataset.get("HighBit") or bits - 1) + 1 - bits
    if not 0 < unused <= int(dataset.BitsAllocated) - bits:
        return dataset.pixel_array  # YBR comes as RGB
    dataset.BitsStored = bits + unused
    stored: np.ndarray = dataset.pixel_array >> unused
    dataset.BitsStored = bits
    return stored


def _name(uid: str) -> str:
    """A UID with its name in the standard; nothing else of a header is fit to be shown."""
    from pydicom.uid import UID

    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        return "of no valid UID"
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
