"""The fast way for ordinary PNGs: the same pixels as Pillow's, and nothing that Pillow would read otherwise."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from knee_siglip.imaging.decode import png
from knee_siglip.imaging.decode.exposure import stretch
from knee_siglip.imaging.decode.png import decode_png

pytest.importorskip("kornia_rs", reason="without it Pillow decodes all PNGs")

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


def filtered(grey: np.ndarray, kind: int) -> bytes:
    """An 8-bit PNG whose rows all have one filter (PNG specification, 9.2)."""
    old = np.pad(grey.astype(int), ((1, 0), (1, 0)))
    left, above, corner = old[1:, :-1], old[:-1, 1:], old[:-1, :-1]
    distances = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))
    nearest = np.choose(distances.argmin(axis=0), [left, above, corner])
    guess = [0 * left, left, above, (left + above) // 2, nearest][kind]
    rows = np.insert(((grey - guess) % 256).astype(np.uint8), 0, kind, axis=1)
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    return whole(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes())))


def whole(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


def with_chunk(name: bytes, content: bytes) -> bytes:
    data = encoded(Image.fromarray(picture(20, 30)))
    return data[:33] + chunk(name, content) + data[33:]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (37, 61), (400, 300)])
def test_grey_is_that_of_pillow(shape):
    grey = picture(*shape)
    decoded = decode_png(encoded(Image.fromarray(grey)))
    assert np.array_equal(decoded.grey, grey)
    assert decoded.grey.dtype == np.uint8
    assert (decoded.bits, decoded.kind) == (8, "PNG L")


def test_sixteen_bits_are_stretched_as_everywhere():
    deep = picture(50, 70, np.uint16)
    decoded = decode_png(encoded(Image.fromarray(deep)))
    assert np.array_equal(decoded.grey, stretch(deep))
    assert (decoded.bits, decoded.kind) == (16, "PNG I;16")


@pytest.mark.parametrize("kind", range(5))
def test_every_row_filter(kind):
    grey = picture(40, 50)
    assert np.array_equal(decode_png(filtered(grey, kind)).grey, grey)


def test_pixels_in_many_chunks_and_harmless_chunks_between():
    data = encoded(Image.fromarray(picture(300, 300)), dpi=(300, 300))
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    content = data[start + 4 : start + 4 + length]
    pieces = [chunk(b"IDAT", content[i : i + 1000]) for i in range(0, length, 1000)]
    cut = data[: start - 4] + b"".join(pieces) + chunk(b"tEXt", b"Comment\0left knee") + chunk(b"IEND", b"")
    assert np.array_equal(decode_png(cut).grey, decode_png(data).grey)


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(Image.fromarray(picture(20, 30)), exif=exif)


def with_text(key: str) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text(key, "\nexif\n 4\n00000000\n")
    return encoded(Image.fromarray(picture(20, 30)), pnginfo=text)


NOT_PLAIN = {
    "colour": lambda: encoded(Image.fromarray(picture(20, 30)).convert("RGB")),
    "palette": lambda: encoded(Image.fromarray(picture(20, 30)).convert("P")),
    "alpha": lambda: encoded(Image.fromarray(picture(20, 30)).convert("LA")),
    "one bit": lambda: encoded(Image.fromarray(picture(20, 30)).convert("1")),
    "transparent grey": lambda: encoded(Image.fromarray(picture(20, 30)), transparency=7),
    "turned by EXIF": turned,
    "EXIF in a text": lambda: with_text("Raw profile type exif"),
    "unknown text": lambda: with_text("XML:com.adobe.xmp"),
    "animated": lambda: with_chunk(b"acTL", struct.pack(">II", 1, 0)),
    "interlaced": lambda: with_header(12, 1),
    "unknown compression": lambda: with_header(10, 1),
    "unknown critical chunk": lambda: with_chunk(b"ABCD", b""),
    "no PNG": lambda: b"\xff\xd8\xff" + bytes(100),
}


def with_header(byte: int, value: int) -> bytes:
    data = encoded(Image.fromarray(picture(20, 30)))
    header = bytearray(data[16:29])
    header[byte] = value
    return data[:8] + chunk(b"IHDR", bytes(header)) + data[33:]


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_pngs_are_left_to_pillow(name):
    assert decode_png(NOT_PLAIN[name]()) is None


def test_damage_anywhere_is_left_to_pillow():
    data = encoded(Image.fromarray(picture(24, 32)))
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        assert decode_png(bytes(broken)) is None, position
        assert decode_png(data[:position]) is None, position


def test_missing_rows_are_left_to_pillow():
    header = struct.pack(">IIBBBBB", 30, 10, 8, 0, 0, 0, 0)
    assert decode_png(whole(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(31 * 9))))) is None


def test_unknown_row_filter_is_left_to_pillow():
    header = struct.pack(">IIBBBBB", 30, 10, 8, 0, 0, 0, 0)
    rows = np.full((10, 31), 9, dtype=np.uint8)
    assert decode_png(whole(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes())))) is None


def test_no_memory_is_taken_for_an_absurd_size(monkeypatch):
    monkeypatch.setattr(png.kornia, "decode_image_png_u8", lambda *_: pytest.fail("inflated"))
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 0, 0, 0, 0)
    assert decode_png(whole(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))))) is None


def test_without_the_library_pillow_decodes_all(monkeypatch):
    monkeypatch.setattr(png, "kornia", None)
    assert decode_png(encoded(Image.fromarray(picture(24, 32)))) is None
