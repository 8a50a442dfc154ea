"""The one frame of a DICOM as stored values: uncompressed, or by the decoder of its transfer syntax."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knee_siglip.imaging.decode.codestream import decode_apart, decode_extended_jpeg, frame_size, frames_in
from knee_siglip.imaging.decode.decoded import ImageError, shown
from knee_siglip.imaging.decode.header import Header

if TYPE_CHECKING:
    from pydicom import Dataset

FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Elements of floating-point pixels, with their bits."""

RLE = "1.2.840.10008.1.2.5"
DECODERS = {
    **{f"1.2.840.10008.1.2.4.{number}": "pillow" for number in (50, 51)},
    **{f"1.2.840.10008.1.2.4.{number}": "gdcm" for number in (57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": "pyjpegls" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "pylibjpeg" for number in (90, 91, 201, 202, 203)},
}
"""One decoder per transfer syntax: tried in turn, a damaged file would come out as another one saw it."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


def several_frames(frames: str, path: Path) -> ImageError:
    """The error for a DICOM with more than one frame, or with part of another."""
    return ImageError(f"{shown(path)}: DICOM with {frames} frames; a radiograph has one")


def stored_values(header: Header) -> np.ndarray:
    """Stored values (H, W), or RGB (H, W, 3), without what older files keep in the unused bits."""
    dataset = header.dataset
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        stored = _decompressed(header)
    else:
        _check_length(header)
        stored = _native(header)
    if stored.shape[:2] != (dataset.Rows, dataset.Columns) or stored.shape[2:] not in ((), (3,)):
        raise ImageError(
            f"{shown(header.path)}: DICOM with pixels of shape {stored.shape}; one grey or RGB frame is read"
        )
    return stored


def _native(header: Header) -> np.ndarray:
    dataset, rows, columns = header.dataset, int(header.dataset.Rows), int(header.dataset.Columns)
    for keyword, bits in FLOATS.items():
        if keyword in dataset:
            kind = f"f{bits // 8}"
            order = "<" if header.little_endian else ">"
            return (
                np.frombuffer(dataset[keyword].value, order + kind, rows * columns).astype(kind).reshape(rows, columns)
            )
    return _without_unused_bits(dataset)


def _check_length(header: Header) -> None:
    """Refuse more pixels than one frame has: half a frame more means that the size in the header is wrong."""
    dataset = header.dataset
    keyword = next((keyword for keyword in FLOATS if keyword in dataset), "PixelData")
    bits = FLOATS.get(keyword) or int(dataset.BitsAllocated)
    pixels, length = int(dataset.Rows) * int(dataset.Columns), len(dataset[keyword].value)
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else int(dataset.SamplesPerPixel)
    if samples == 2 and length >= 3 * pixels:  # nothing is left out, whatever the name says
        header.doubt("PhotometricInterpretation")
        dataset.PhotometricInterpretation, samples = "YBR_FULL", 3
    frame = math.ceil(pixels * samples * bits / 8)
    row = math.ceil(int(dataset.Columns) * samples * bits / 8)
    if length - frame >= max(row, 2):  # less is padding, which many writers add
        raise several_frames(f"{length / frame:.2g}", header.path)


def _decompressed(header: Header) -> np.ndarray:
    from pydicom.encaps import encapsulate

    dataset, syntax, bits = header.dataset, header.dataset.file_meta.TransferSyntaxUID, int(header.dataset.BitsStored)
    frames = frames_in(dataset.PixelData)
    if len(frames) != 1:
        raise several_frames(str(len(frames)), header.path)
    frame = frames[0]
    if syntax != RLE and frame_size(frame) != (dataset.Rows, dataset.Columns):  # decoders believe the frame: a bomb
        raise ImageError(
            f"{shown(header.path)}: DICOM that is damaged: its header and its compressed image differ in size"
        )
    if syntax == JPEG_EXTENDED and bits > 8:
        shape = int(dataset.Rows), int(dataset.Columns)
        values = decode_apart(lambda: decode_extended_jpeg(frame, *shape, bits), shape, "u2")
        sign = 16 - bits
        return (values << sign).view(np.int16) >> sign if dataset.PixelRepresentation == 1 else values
    dataset.PixelData = encapsulate([frame], has_bot=False)  # offset tables that list fragments would cut it short
    if syntax in DECODERS:
        dataset.pixel_array_options(decoding_plugin=DECODERS[syntax])
    if DECODERS.get(syntax) == "gdcm":
        shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)[: 2 if dataset.SamplesPerPixel == 1 else 3]
        kind = "i" if dataset.PixelRepresentation == 1 else "u"
        return decode_apart(lambda: dataset.pixel_array, shape, f"{kind}{dataset.BitsAllocated // 8}")
    return _without_unused_bits(dataset)


def _without_unused_bits(dataset: "Dataset") -> np.ndarray:
    """Stored values, YBR as RGB; bits below the lowest of the stored ones are cut off."""
    bits = int(dataset.BitsStored)
    unused = int(dataset.HighBit) + 1 - bits
    if not unused:
        return dataset.pixel_array
    dataset.BitsStored = bits + unused
    stored: np.ndarray = dataset.pixel_array >> unused
    dataset.BitsStored = bits
    return stored
