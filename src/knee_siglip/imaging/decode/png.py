"""What Pillow does not check of a PNG: checksums, and whether there are as many rows as the header says."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from knee_siglip.imaging.decode.decoded import ImageError, shown

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 200_000
"""The largest image in chunks of 4 kB has 100,000."""

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel of the colour types (PNG specification, 11.2.2)."""

WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass of an interlaced image the first column and row, and the steps (PNG specification, 8.2)."""


def pixel_chunks(data: bytes, path: Path) -> list[memoryview]:
    """The compressed pixels. The critical chunks' checksums are right: a flipped bit would change pixels in silence.

    Raises:
        ImageError: truncated, a wrong checksum, or too many chunks.
    """
    chunks, view, position = [], memoryview(data), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        header = data[position : position + 8]
        if len(header) < 8:
            break
        length, name = struct.unpack(">I4s", header)
        end = position + 8 + length
        critical = not name[0] & 0x20  # PNG specification, 5.4: a lower-case letter marks an ancillary chunk
        if critical and data[end : end + 4] != struct.pack(">I", zlib.crc32(view[position + 4 : end])):
            raise ImageError(f"{shown(path)}: is damaged: {'truncated' if end + 4 > len(data) else 'wrong checksum'}")
        if name == b"IDAT":
            chunks.append(view[position + 8 : end])
        if name == b"IEND":
            return chunks
        position = end + 4
    raise ImageError(f"{shown(path)}: is damaged: truncated, or cut into more than {MAX_CHUNKS:,} chunks")


def check_rows(data: bytes, chunks: list[memoryview], grey: np.ndarray, path: Path) -> None:
    """Refuse a PNG whose compressed pixels end early: Pillow fills the missing rows with zeros.

    grey: as Pillow decoded it, uint8 (H, W). Filled rows leave an edge of one grey, so other images that are not
    interlaced need not be inflated a second time.
    """
    width, height, depth, colour, interlaced = struct.unpack(">IIBBxxB", data[16:29])
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    if not interlaced and all(edge.min() < edge.max() for edge in edges):
        return
    missing = 0
    for left, top, across, down in ADAM7 if interlaced else WHOLE:
        columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
        if columns > 0:
            missing += rows * (1 + math.ceil(columns * depth * CHANNELS[colour] / 8))
    inflater = zlib.decompressobj()
    for chunk in chunks:
        rest: bytes | memoryview = chunk
        while len(rest) and missing > 0 and not inflater.eof:
            missing -= len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
    if missing > 0:
        raise ImageError(f"{shown(path)}: is damaged: rows are missing at the end")
