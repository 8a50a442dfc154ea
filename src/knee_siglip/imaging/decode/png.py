"""PNG: what Pillow does not check (checksums, missing rows), and plain ones in less than half of Pillow's time."""

import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from kornia_rs import io as kornia
from PIL import Image

from knee_siglip.imaging.decode.decoded import Decoded, ImageError, shown
from knee_siglip.imaging.decode.exposure import stretch

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 200_000
"""The largest image in chunks of 4 kB has 100,000."""

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel of the colour types (PNG specification, 11.2.2)."""

PLAIN = {(8, 0): ("PNG L", "mono"), (16, 0): ("PNG I;16", "mono"), (8, 2): ("PNG RGB", "rgb")}
"""By depth and colour type: the kind, named as Pillow's, and the decoder's word for it."""

IGNORED = {b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"bKGD"}
"""Chunks that change no grey, unlike tRNS (transparency), iCCP, eXIf and texts (may turn the image), acTL (frames)."""

MAX_BYTES = 64 * 2**20
"""Inflated; a larger image is decoded by Pillow."""

MAX_RATIO = 1032
"""Deflate compresses no better: whatever claims more is damaged, and no memory is taken for it."""

HEADER_SIZE = 25
"""Bytes of the chunk IHDR."""

STORED = 0xFFFF
"""Bytes of a block without compression, at most (RFC 1951, 3.2.4)."""

WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass of an interlaced image the first column and row, and the steps (PNG specification, 8.2)."""


class Content(NamedTuple):
    """Names of all chunks, in order, and the compressed pixels."""

    names: list[bytes]
    pixels: list[memoryview]


def read_chunks(data: bytes, path: Path) -> Content:
    """Chunks of a PNG. The critical ones' checksums are right: a flipped bit would change pixels in silence.

    Raises:
        ImageError: truncated, a wrong checksum, or too many chunks.
    """
    content, view, position = Content([], []), memoryview(data), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        header = data[position : position + 8]
        if len(header) < 8:
            break
        length, name = struct.unpack(">I4s", header)
        end = position + 8 + length
        critical = not name[0] & 0x20  # PNG specification, 5.4: a lower-case letter marks an ancillary chunk
        if critical and data[end : end + 4] != struct.pack(">I", isal_zlib.crc32(view[position + 4 : end])):
            raise ImageError(f"{shown(path)}: is damaged: {'truncated' if end + 4 > len(data) else 'wrong checksum'}")
        content.names.append(name)
        if name == b"IDAT":
            content.pixels.append(view[position + 8 : end])
        if name == b"IEND":
            return content
        position = end + 4
    raise ImageError(f"{shown(path)}: is damaged: truncated, or cut into more than {MAX_CHUNKS:,} chunks")


def decode_plain(data: bytes, content: Content) -> Decoded | None:
    """A PNG of `PLAIN` kind, not interlaced, with no chunk that may change what its pixels mean.

    None for all others, and for what the decoder refuses: Pillow reads them, or says what is wrong.
    """
    if not _is_plain(content.names):
        return None
    width, height, depth, colour, *ways = struct.unpack(">IIBBBBB", data[16:29])
    if (depth, colour) not in PLAIN or any(ways):
        return None
    kind, channels = PLAIN[depth, colour]
    inflated = height * (1 + width * CHANNELS[colour] * depth // 8)
    if inflated > min(MAX_BYTES, MAX_RATIO * sum(map(len, content.pixels))):
        return None
    read = kornia.decode_image_png_u8 if depth == 8 else kornia.decode_image_png_u16
    try:
        file = b"".join([data[: len(SIGNATURE) + HEADER_SIZE], *_chunk(b"IDAT", *_stored(content, inflated)), *END])
        pixels: np.ndarray = read(file, (height, width), channels)
    except Exception:  # Pillow has the last word
        return None
    if colour:
        return Decoded(np.array(Image.fromarray(pixels).convert("L")), depth, kind)
    grey = pixels[..., 0]
    return Decoded(grey if depth == 8 else stretch(grey), depth, kind)


def _stored(content: Content, size: int) -> list[bytes | memoryview]:
    """The pixels inflated, checked to be `size` bytes with the right checksum, and wrapped as stored blocks.

    The decoder does not compare the checksum, and its inflating takes twice as long (docs/decisions.md).

    Raises:
        isal_zlib.error, ValueError: damaged, or of another size.
    """
    stream, inflater = b"".join(content.pixels), isal_zlib.decompressobj()
    pixels = memoryview(inflater.decompress(stream, size + 1))
    if not inflater.eof or len(pixels) != size:
        raise ValueError("not the pixels that the header announces")
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, size, STORED):
        block = pixels[start : start + STORED]
        parts += [struct.pack("<?HH", start + STORED >= size, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", isal_zlib.adler32(pixels))]


def _chunk(name: bytes, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """A chunk whose content is the parts one after the other, to be joined once."""
    checksum = isal_zlib.crc32(name)
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, parts))), name, *parts, struct.pack(">I", checksum)]


END = _chunk(b"IEND")


def _is_plain(names: list[bytes]) -> bool:
    """Header first, pixels together, and beside them only what changes none."""
    first, count = names.index(b"IDAT") if b"IDAT" in names else 0, names.count(b"IDAT")
    others = names[1:first] + names[first + count : -1]
    return (
        bool(count)
        and names[0] == b"IHDR"
        and names[first : first + count].count(b"IDAT") == count
        and (IGNORED.issuperset(others))
    )


def check_rows(data: bytes, content: Content, grey: np.ndarray, path: Path) -> None:
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
    for chunk in content.pixels:
        rest: bytes | memoryview = chunk
        while len(rest) and missing > 0 and not inflater.eof:
            missing -= len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
    if missing > 0:
        raise ImageError(f"{shown(path)}: is damaged: rows are missing at the end")
