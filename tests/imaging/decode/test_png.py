"""Plain PNGs by the fast decoder: the pixels that Pillow gives, and nothing that Pillow would read otherwise."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from knee_siglip.imaging.decode import png
from knee_siglip.imaging.decode.decoded import ImageError
from knee_siglip.imaging.decode.png import decode_plain, read_chunks
from knee_siglip.imaging.decode.read import decode

FILE = Path("a.png")
RNG = np.random.default_rng(0)


def picture(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    """A gradient with some noise: what makes an encoder use every row filter."""
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, 0.8 * top, width) * np.linspace(0.3, 1, height)[:, None]
    return (ramp + RNG.integers(0, top // 8, (height, width))).astype(dtype)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def whole(header: tuple[int, ...], rows: bytes) -> bytes:
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), chunk(b"IDAT", zlib.compress(rows))
    return png.SIGNATURE + b"".join([*chunks, chunk(b"IEND", b"")])


def with_chunk(name: bytes, content: bytes) -> bytes:
    data = encoded(Image.fromarray(picture(20, 30)))
    return data[:33] + chunk(name, content) + data[33:]


def fast(data: bytes):
    return decode_plain(data, read_chunks(data, FILE))


def by_pillow(monkeypatch, data: bytes):
    with monkeypatch.context() as patch:
        patch.setattr(png, "PLAIN", {})
        return decode(data, FILE)


PLAIN = {
    "one pixel": lambda: encoded(Image.fromarray(picture(1, 1))),
    "one row": lambda: encoded(Image.fromarray(picture(1, 300))),
    "grey": lambda: encoded(Image.fromarray(picture(300, 201))),
    "16 bits": lambda: encoded(Image.fromarray(picture(150, 170, np.uint16))),
    "colour": lambda: encoded(Image.fromarray(np.stack([picture(90, 70)] * 2 + [picture(90, 70) // 2], axis=2))),
    "more than one stored block": lambda: encoded(Image.fromarray(picture(300, 500))),
    "a full stored block": lambda: encoded(Image.fromarray(picture(255, 256))),
    "resolution": lambda: encoded(Image.fromarray(picture(40, 50)), dpi=(300, 300)),
    "many chunks": lambda: in_pieces(encoded(Image.fromarray(picture(200, 300)))),
}


def in_pieces(data: bytes) -> bytes:
    content = b"".join(read_chunks(data, FILE).pixels)
    pieces = [chunk(b"IDAT", content[at : at + 1000]) for at in range(0, len(content), 1000)]
    return data[:33] + b"".join(pieces) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", PLAIN)
def test_pixels_depth_and_kind_are_those_of_pillow(name, monkeypatch):
    data = PLAIN[name]()
    decoded, expected = fast(data), by_pillow(monkeypatch, data)
    assert np.array_equal(decoded.grey, expected.grey)
    assert decoded.grey.dtype == np.uint8
    assert (decoded.bits, decoded.kind) == (expected.bits, expected.kind)


@pytest.mark.parametrize("kind", range(5))
def test_every_row_filter(kind, monkeypatch):
    rows = np.insert(picture(40, 50), 0, kind, axis=1)
    data = whole((50, 40, 8, 0, 0, 0, 0), rows.tobytes())
    assert np.array_equal(fast(data).grey, by_pillow(monkeypatch, data).grey)


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(Image.fromarray(picture(20, 30)), exif=exif)


def with_text(key: str) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text(key, "\nexif\n 4\n00000000\n")
    return encoded(Image.fromarray(picture(20, 30)), pnginfo=text)


LEFT_TO_PILLOW = {
    "palette": lambda: encoded(Image.fromarray(picture(20, 30)).convert("P")),
    "grey with alpha": lambda: encoded(Image.fromarray(picture(20, 30)).convert("LA")),
    "colour with alpha": lambda: encoded(Image.fromarray(picture(20, 30)).convert("RGBA")),
    "one bit": lambda: encoded(Image.fromarray(picture(20, 30)).convert("1")),
    "16-bit colour": lambda: whole((2, 1, 16, 2, 0, 0, 0), bytes(13)),
    "transparent grey": lambda: encoded(Image.fromarray(picture(20, 30)), transparency=7),
    "ICC profile": lambda: encoded(Image.fromarray(picture(20, 30)), icc_profile=b"profile"),
    "turned by EXIF": turned,
    "EXIF in a text": lambda: with_text("Raw profile type exif"),
    "animated": lambda: with_chunk(b"acTL", struct.pack(">II", 1, 0)),
    "interlaced": lambda: whole((8, 8, 8, 0, 0, 0, 1), bytes(200)),
    "unknown compression": lambda: whole((8, 8, 8, 0, 1, 0, 0), bytes(72)),
    "unknown critical chunk": lambda: with_chunk(b"ABCD", b""),
    "missing rows": lambda: whole((30, 10, 8, 0, 0, 0, 0), bytes(31 * 9)),
    "unknown row filter": lambda: whole((30, 10, 8, 0, 0, 0, 0), b"\x09" * 310),
    "more pixels than deflate can hold": lambda: whole((8000, 8000, 8, 0, 0, 0, 0), bytes(100)),
}


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_other_pngs_are_left_to_pillow(name):
    assert fast(LEFT_TO_PILLOW[name]()) is None


def test_damage_anywhere_is_refused_or_changes_no_pixel():
    grey = picture(24, 32)
    data = encoded(Image.fromarray(grey))
    for position in range(len(data)):
        for broken in (data[:position], data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]):
            try:
                decoded = decode(broken, FILE)
            except ImageError:
                continue
            assert np.array_equal(decoded.grey, grey), position


def test_what_both_read_of_a_damaged_stream_with_right_chunk_checksums_is_equal(monkeypatch):
    data = encoded(Image.fromarray(picture(24, 32)))
    content, read = b"".join(read_chunks(data, FILE).pixels), 0
    for position in range(len(content)):
        broken = content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]
        forged = data[:33] + chunk(b"IDAT", broken) + chunk(b"IEND", b"")
        decoded = fast(forged)
        try:
            expected = by_pillow(monkeypatch, forged)
        except ImageError:
            continue
        read += 1
        assert decoded is None or np.array_equal(decoded.grey, expected.grey), position
    assert read
