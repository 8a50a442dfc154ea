"""The ordinary PNG, decoded in about a third of Pillow's time by kornia_rs (Rust's png); all others are Pillow's."""

import struct
import zlib
from typing import Any

import numpy as np

from knee_siglip.imaging.decode.exposure import Decoded, stretch

try:
    from kornia_rs import io as kornia
except ImportError:  # no wheel for this platform: Pillow decodes everything
    kornia: Any = None  # type: ignore[no-redef]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODES = {8: "PNG L", 16: "PNG I;16"}
"""By bits, named as Pillow's."""

IGNORED = {b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"bKGD"}
"""Chunks that change no grey, unlike tRNS (transparency), eXIf and texts (may turn the image), acTL (frames)."""

PLAIN_KEYS = (b"Title\0", b"Author\0", b"Description\0", b"Software\0", b"Comment\0", b"Creation Time\0")
"""Texts (PNG specification, 11.3.4.2) that turn nothing either."""

MAX_TEXT = 2**16
MAX_CHUNKS = 10_000
MAX_BYTES = 64 * 2**20
"""Inflated; a larger image is decoded by Pillow."""

MAX_RATIO = 1032
"""Deflate compresses no better: whatever claims more is damaged, and no memory is taken for it."""


def decode_png(data: bytes) -> Decoded | None:
    """Grey PNG of 8 or 16 bits, not interlaced, with no chunk that matters beside its pixels.

    None for all other PNGs, for damaged ones and for what is no PNG: Pillow reads them, or says what is wrong.
    """
    if kornia is None:
        return None
    try:
        width, height, bits, compressed = _plain_content(data)
        if height * (1 + width * bits // 8) > min(MAX_BYTES, MAX_RATIO * compressed):
            return None
        read = kornia.decode_image_png_u8 if bits == 8 else kornia.decode_image_png_u16
        pixels: np.ndarray = read(data, (height, width), "mono")[..., 0]
    except Exception:  # whatever the decoder does not like: Pillow has the last word
        return None
    return Decoded(pixels if bits == 8 else stretch(pixels), bits, MODES[bits])


def _plain_content(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits and bytes of the compressed rows; some error for a PNG that is not plain."""
    if not data.startswith(SIGNATURE):
        raise ValueError
    parts: list[tuple[bytes, memoryview]] = []
    position, view = len(SIGNATURE), memoryview(data)
    while not parts or parts[-1][0] != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0] or len(parts) > MAX_CHUNKS:
            raise ValueError
        parts.append((name, view[position + 8 : end]))
        position = end + 4
    names = [name for name, _ in parts]
    width, height, *kind = struct.unpack(">IIBBBBB", parts[0][1])
    pixels = [content for name, content in parts if name == b"IDAT"]
    first = names.index(b"IDAT")
    together = names[first : first + len(pixels)].count(b"IDAT") == len(pixels)
    if names[0] != b"IHDR" or not together or kind[0] not in MODES or any(kind[1:]) or not width * height:
        raise ValueError
    if not all(_is_ignored(name, content) for name, content in parts[1:-1] if name != b"IDAT"):
        raise ValueError
    return width, height, kind[0], sum(map(len, pixels))


def _is_ignored(name: bytes, content: memoryview) -> bool:
    if name == b"tEXt":
        return len(content) < MAX_TEXT and bytes(content[:32]).startswith(PLAIN_KEYS)
    return name in IGNORED
