"""What a compressed DICOM frame says of itself, and the frames that only GDCM decodes."""

import faulthandler
import io
import mmap
import os
import re
import struct
from collections.abc import Callable

import numpy as np

JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
"""Markers of frame headers: ITU T.81, table B.1, and JPEG-LS (ITU T.87)."""

JPEG_2000_SIZE = b"\xff\x4f\xff\x51"
"""Start of codestream, then the size marker (ISO 15444-1, A.4.1 and A.5.1)."""

START = rb"\xff\xd8\xff|\xff\x4f\xff\x51|\0\0\0\x0cjP  |[\x01-\x0f]\0{3}\x40\0{3}"
"""How a frame begins: JPEG and JPEG-LS, a JPEG 2000 codestream or file, RLE (PS3.5, annex G.5)."""

NEXT_FRAME = re.compile(rb"(?<=\xff\xd9)\0?(?=" + START + rb")")
"""Between two images in one fragment. Neither marker pair can stand inside compressed data."""


def frames_in(pixel_data: bytes) -> list[bytes]:
    """The frames of encapsulated pixel data, found by how they begin, not by the offset table or the number claimed."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    stream = io.BytesIO(pixel_data)
    parse_basic_offsets(stream)
    frames: list[list[bytes]] = []
    for fragment in generate_fragments(stream):
        for part in NEXT_FRAME.split(fragment):
            if not frames or re.match(START, part):
                frames.append([])
            frames[-1].append(part)
    return [b"".join(parts) for parts in frames]


def frame_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) from a JPEG, JPEG-LS or JPEG 2000 frame's own header; None where it has none (RLE)."""
    siz = frame.find(JPEG_2000_SIZE, 0, 4096)  # some files wrap the codestream into a JP2 file
    if siz >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", frame, siz + 8)
        return bottom - top, right - left
    return _jpeg_size(frame) if frame[:2] == b"\xff\xd8" else None


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in JPEG_SIZES:
            rows, columns = frame[position + 5 : position + 7], frame[position + 7 : position + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big")
        fill = marker == 0xFF
        position += 1 if fill else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def decode_extended_jpeg(frame: bytes, rows: int, columns: int, bits: int) -> np.ndarray:
    """JPEG Extended with 9 to 12 bits, one component: uint16 (rows, columns). pydicom offers no decoder for it.

    Raises:
        ValueError: the frame is damaged.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("GDCM cannot decode the frame")
    return np.frombuffer(buffer.encode("utf-8", "surrogateescape"), dtype="<u2").reshape(rows, columns)


def decode_apart(decode: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """`decode()` in a child process: on some damaged frames GDCM aborts the process instead of raising.

    Raises:
        ValueError: it failed, crashed, or gave other than `shape` and `dtype` promise.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not hasattr(os, "fork"):  # Windows: a damaged file may end the program there
        return decode()
    shared = mmap.mmap(-1, max(1, size))
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # GDCM prints what it dislikes
            shared[:] = decode().astype(dtype, copy=False).tobytes()  # of another size: an error
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        raise ValueError("GDCM cannot decode the frame")
    return np.frombuffer(shared, dtype=dtype).reshape(shape)
