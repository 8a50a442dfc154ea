"""Bad, odd and hostile picture files: each is read right, or refused in one sentence that names it."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import png as pypng
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from knee_siglip.imaging.decode.png import read_chunks
from knee_siglip.imaging.decode.read import MAX_BYTES, ImageError, read_grey

RAMP = np.linspace(0, 255, 48 * 64).astype(np.uint8).reshape(48, 64)
DEEP = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
GREY = Image.fromarray(RAMP)


def encoded(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def png(samples: np.ndarray, **options) -> bytes:
    """What Pillow does not write: grey of 2 and 4 bits, colour of 16. samples: (H, W * channels), W is 64."""
    stream = io.BytesIO()
    pypng.Writer(64, len(samples), **options).write(stream, samples.tolist())
    return stream.getvalue()


def deep_png(*channels: np.ndarray) -> bytes:
    """Channels (48, 64) of 16 bits, as grey, grey and alpha, colour, or colour and alpha."""
    samples = np.stack(channels, axis=-1).reshape(48, -1)
    return png(samples, bitdepth=16, greyscale=len(channels) < 3, alpha=len(channels) in (2, 4))


def chunk(name: bytes, content: bytes) -> bytes:
    """A PNG's chunk, with its length and checksum."""
    stream = io.BytesIO()
    PngImagePlugin.putchunk(stream, name, content)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of 64 x 48 pixels whose header tells of another size."""
    data = encoded(GREY, "PNG")
    return data[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]


def png_with(name: bytes, content: bytes) -> bytes:
    """A grey PNG with one more chunk after its header."""
    data = encoded(GREY, "PNG")
    return data[:33] + chunk(name, content) + data[33:]


def png_of_rows(rows: int, *passes: bytes, interlaced: bool = False) -> bytes:
    """A 64 x 48 PNG with every checksum right and only so many rows, or passes, inside."""
    pixels = b"".join(passes or (b"\0" + row.tobytes() for row in RAMP[:rows]))
    header = struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, interlaced)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def passes(count: int) -> list[bytes]:
    """The first of the seven passes of an interlaced RAMP."""
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return [
        b"\0" + row.tobytes()
        for left, top, across, down in starts[:count]
        for row in np.ascontiguousarray(RAMP[top::down, left::across])
    ]


def tiff(samples: np.ndarray, photometric: str = "minisblack", byteorder: Literal["<", ">"] = "<") -> bytes:
    """Samples (H, W) or (H, W, channels) of any type, uncompressed."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, photometric=photometric, byteorder=byteorder, metadata=None)
    return stream.getvalue()


def retagged(data: bytes, tag: str, value: int) -> bytes:
    """A TIFF that tells something else about its pixels."""
    stream = io.BytesIO(data)
    with tifffile.TiffFile(stream, mode="r+") as file:
        file.pages.first.tags[tag].overwrite(value)
        return stream.getvalue()


def oriented(value: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(GREY, form, exif=exif, **({"quality": 100} if form in ("JPEG", "WEBP") else {}))


TURNED = {
    1: RAMP,
    2: RAMP[:, ::-1],
    3: RAMP[::-1, ::-1],
    4: RAMP[::-1],
    5: RAMP.T,
    6: np.rot90(RAMP, -1),
    7: RAMP[::-1, ::-1].T,
    8: np.rot90(RAMP),
}


def palette(**options) -> bytes:
    image = Image.fromarray(RAMP).convert("P")
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    return encoded(image, "PNG", **options)


def lab() -> bytes:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    return encoded(ImageCms.applyTransform(GREY.convert("RGB"), transform), "TIFF")


def levels(depth: int) -> np.ndarray:
    """(48, 64): each row holds every grey of that depth, over and over."""
    return np.tile(np.arange(2**depth), (48, 64 // 2**depth))


def steps(depth: int) -> np.ndarray:
    return levels(depth) * 255 // (2**depth - 1)


def half_clear(grey: np.ndarray) -> np.ndarray:
    return np.where(np.arange(64) < 32, 0, grey)


CLEAR = Image.fromarray(half_clear(np.full((48, 64), 255)).astype(np.uint8))
DEEP_CLEAR = half_clear(np.full((48, 64), 65535)).astype(np.uint16)
DEEP_GREY = DEEP >> 8
NAN = np.where(np.arange(64) == 5, np.nan, np.where(np.arange(64) == 60, np.inf, RAMP)).astype(np.float32)
NAN_GREY = np.where(np.isnan(NAN), 0, np.clip(np.nan_to_num(NAN, posinf=255), 0, 255))
SIGNED = RAMP.astype(np.int16) * 100 - 12000
FRAMES = [Image.fromarray(np.full((48, 64), level, np.uint8)) for level in (10, 90, 200)]
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("Patient", "Doe^Jane")
MANY_TEXTS = PngImagePlugin.PngInfo()
for number in range(70):
    MANY_TEXTS.add_text(f"note {number}", "b" * 2**20)
MANY = {"save_all": True, "append_images": FRAMES[1:]}


def thumbnail_tiff() -> bytes:
    page = Image.fromarray(RAMP)
    small = page.resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    return encoded(page, "TIFF", save_all=True, append_images=[small])


READ: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    # name: (makes the bytes, expected grey, greys that it may differ by)
    "grey.png": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    "interlaced-like-text.png": (lambda: encoded(GREY, "PNG", pnginfo=TEXT), RAMP, 0),
    "black.png": (lambda: encoded(Image.fromarray(RAMP * 0), "PNG"), RAMP * 0, 0),
    "all-rows.png": (lambda: png_of_rows(48), RAMP, 0),
    "interlaced.png": (lambda: png_of_rows(0, *passes(7), interlaced=True), RAMP, 0),
    "bilevel.png": (lambda: encoded(GREY.point(lambda g: 255 * (g > 99), "1"), "PNG"), 255 * (RAMP > 99), 0),
    "2-bit.png": (lambda: png(levels(2), bitdepth=2), steps(2), 0),
    "4-bit.png": (lambda: png(levels(4), bitdepth=4), steps(4), 0),
    "2-bit-transparent.png": (
        lambda: png(levels(2), bitdepth=2, transparent=2),
        np.where(steps(2) == 170, 0, steps(2)),
        0,
    ),
    "grey-alpha.png": (lambda: encoded(Image.merge("LA", [GREY, CLEAR]), "PNG"), half_clear(RAMP), 0),
    "colour-alpha.png": (lambda: encoded(Image.merge("RGBA", [GREY] * 3 + [CLEAR]), "PNG"), half_clear(RAMP), 0),
    "palette.png": (palette, 255 - RAMP, 0),
    "palette-clear.png": (lambda: palette(transparency=7), np.where(RAMP == 7, 0, 255 - RAMP), 0),
    "palette-alpha.png": (lambda: palette(transparency=b"\0" * 8), np.where(RAMP < 8, 0, 255 - RAMP), 0),
    "16-bit.png": (lambda: encoded(DEEP, "PNG"), DEEP_GREY, 1),
    "16-bit-colour.png": (lambda: deep_png(*[DEEP // 16] * 3), DEEP_GREY, 1),
    "16-bit-alpha.png": (lambda: deep_png(DEEP, DEEP_CLEAR), None, 0),
    "16-bit-colour-alpha.png": (lambda: deep_png(*[DEEP // 16] * 3, DEEP * 0 + 65535), DEEP_GREY, 1),
    "12-bits-in-16.png": (lambda: encoded(DEEP >> 4, "PNG"), DEEP_GREY, 1),
    "little-endian.tif": (lambda: tiff(DEEP), DEEP_GREY, 1),
    "big-endian.tif": (lambda: tiff(DEEP, byteorder=">"), DEEP_GREY, 1),
    "white-is-zero.tif": (lambda: tiff(RAMP, "miniswhite"), 255 - RAMP, 0),
    "16-bit-white-is-zero.tif": (lambda: tiff(DEEP, "miniswhite"), 255 - DEEP_GREY, 1),
    "signed-8-bit.tif": (lambda: tiff((RAMP ^ 0x80).view(np.int8)), RAMP, 0),
    "signed-16-bit.tif": (lambda: tiff(SIGNED), RAMP, 1),
    "32-bit.tif": (lambda: tiff(RAMP.astype(np.int32) * 1000), RAMP, 1),
    "unsigned-32-bit.tif": (lambda: retagged(tiff(RAMP.astype(np.int32) << 24), "SampleFormat", 1), RAMP, 1),
    "unsigned-32-bit-untold.tif": (lambda: tiff(RAMP.astype(np.uint32) << 24), RAMP, 1),
    "16-bit-colour.tif": (lambda: tiff(np.dstack([DEEP >> 4] * 3), "rgb"), DEEP_GREY, 1),
    "16-bit-colour-big.tif": (lambda: tiff(np.dstack([DEEP >> 4] * 3), "rgb", ">"), DEEP_GREY, 1),
    "float.tif": (lambda: tiff(RAMP.astype(np.float32) / 255), RAMP, 1),
    "float-nan-inf.tif": (lambda: tiff(NAN), NAN_GREY, 1),
    "float-nothing-finite.tif": (lambda: tiff(NAN * np.nan), RAMP * 0, 0),
    "cmyk.tif": (lambda: encoded(GREY.convert("RGB").convert("CMYK"), "TIFF"), RAMP, 1),
    "cmyk.jpg": (lambda: encoded(GREY.convert("RGB").convert("CMYK"), "JPEG", quality=100), RAMP, 4),
    "ycbcr.tif": (lambda: encoded(GREY.convert("YCbCr"), "TIFF"), RAMP, 1),
    "lab.tif": (lab, RAMP, 4),
    "lzw.tif": (lambda: encoded(DEEP, "TIFF", compression="tiff_lzw"), DEEP_GREY, 1),
    "grey.gif": (lambda: encoded(GREY, "GIF"), RAMP, 0),
    "grey.webp": (lambda: encoded(GREY, "WEBP", lossless=True), RAMP, 0),
    "grey.bmp": (lambda: encoded(GREY, "BMP"), RAMP, 0),
    "grey.jp2": (lambda: encoded(GREY, "JPEG2000"), RAMP, 0),
    "16-bit.jp2": (lambda: encoded(DEEP, "JPEG2000"), DEEP_GREY, 1),
    "grey.pgm": (lambda: encoded(GREY, "PPM"), RAMP, 0),
    "12-bit.pgm": (lambda: b"P5 64 48 4095\n" + (DEEP >> 4).astype(">u2").tobytes(), DEEP_GREY, 1),
    "black.jpg": (lambda: encoded(Image.fromarray(RAMP * 0), "JPEG", quality=90), RAMP * 0, 0),
    "progressive.jpg": (lambda: encoded(GREY, "JPEG", quality=100, progressive=True), RAMP, 2),
    "more-after-the-end.jpg": (lambda: encoded(GREY, "JPEG", quality=100) + b"\0" * 99, RAMP, 2),
    "two-jpegs.jpg": (lambda: encoded(GREY, "MPO", save_all=True, append_images=FRAMES[:1], quality=100), RAMP, 2),
    "thumbnail-page.tif": (thumbnail_tiff, RAMP, 0),
    "one-pixel.png": (lambda: encoded(RAMP[40:41, :1], "PNG"), RAMP[40:41, :1], 0),
    "one-deep-pixel.png": (lambda: encoded(DEEP[40:41, :1], "PNG"), RAMP[:1, :1], 0),
    "one-row.png": (lambda: encoded(RAMP.reshape(1, -1), "PNG"), RAMP.reshape(1, -1), 0),
    "one-deep-column.png": (lambda: encoded(DEEP.reshape(-1, 1), "PNG"), DEEP_GREY.reshape(-1, 1), 1),
    "jpeg-called.png": (lambda: encoded(GREY, "JPEG", quality=100), RAMP, 2),
    "png-called.dcm": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    "png-without-ending": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    "more-after-the-end.png": (lambda: encoded(GREY, "PNG") + b"PK\x03\x04 appended", RAMP, 0),
    "new\nline.png": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    "Knie räntgen 膝\u202e.png": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    "bytes-\udcff.png": (lambda: encoded(GREY, "PNG"), RAMP, 0),
    **{f"orientation-{n}.jpg": (lambda n=n: oriented(n, "JPEG"), grey, 2) for n, grey in TURNED.items()},
    **{f"orientation-{n}.png": (lambda n=n: oriented(n, "PNG"), grey, 0) for n, grey in TURNED.items() if n > 4},
    **{f"orientation-{n}.tif": (lambda n=n: oriented(n, "TIFF"), grey, 0) for n, grey in TURNED.items() if n > 4},
    "orientation-99.jpg": (lambda: oriented(99, "JPEG"), RAMP, 2),
}


@pytest.mark.parametrize("name", READ)
def test_odd_picture_is_read_right(tmp_path, name):
    make, expected, tolerance = READ[name]
    path = tmp_path / name
    path.write_bytes(make())
    grey = read_grey(path)
    assert grey.dtype == np.uint8
    if expected is None:  # half transparent: black there; the other half stretched by itself
        assert (grey[:, :32] == 0).all()
        assert np.ptp(grey[:, 32:].astype(int)) == 255
        return
    assert grey.shape == expected.shape
    assert np.abs(grey.astype(int) - expected).max() <= tolerance


FLAT = zlib.compress(b"\0" * 2**27, 9)
"""128 MiB in 130 kB."""


def rewritten(data: bytes, at: int) -> bytes:
    """A PNG whose compressed pixels have a flipped bit in byte `at`, in a chunk with a right checksum."""
    pixels = b"".join(read_chunks(data, Path("a.png")).pixels)
    return data[:33] + chunk(b"IDAT", flipped(pixels, at)) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.png": (lambda: encoded(GREY, "PNG")[:-40], "damaged: truncated"),
    "half-the-rows.png": (lambda: png_of_rows(24), "damaged: rows are missing"),
    "one-row-less.png": (lambda: png_of_rows(47), "damaged: rows are missing"),
    "one-pass-less.png": (
        lambda: png_of_rows(0, *passes(6), interlaced=True),
        "damaged: rows are missing",
    ),
    "no-end.png": (lambda: encoded(GREY, "PNG")[:-12], "damaged: truncated"),
    "wrong-adler.png": (lambda: rewritten(encoded(GREY, "PNG"), -1), "damaged: broken data stream"),
    "wrong-adler-16-bit.png": (lambda: rewritten(deep_png(DEEP), -1), "damaged: broken data stream"),
    "flipped-before-the-checksum.png": (
        lambda: rewritten(encoded(GREY, "PNG", compress_level=0), 1000),
        "damaged: broken data stream",
    ),
    "truncated.jpg": (lambda: encoded(GREY, "JPEG")[:-200], "damaged: truncated"),
    "closed-after-the-cut.jpg": (
        lambda: encoded(NOISE, "JPEG", quality=90)[:-300] + b"\xff\xd9",
        "damaged: its pixels end early",
    ),
    "closed-after-the-cut-progressive.jpg": (
        lambda: encoded(NOISE, "JPEG", quality=90, progressive=True)[:-300] + b"\xff\xd9",
        "damaged: its pixels end early",
    ),
    "truncated.tif": (lambda: encoded(GREY, "TIFF")[:-200], "damaged"),
    "truncated.gif": (lambda: encoded(GREY, "GIF")[:-200], "damaged"),
    "truncated.webp": (lambda: encoded(NOISE, "WEBP")[:-200], "damaged|no image"),
    "truncated.jp2": (lambda: encoded(GREY, "JPEG2000")[:-400], "damaged"),
    "truncated.bmp": (lambda: encoded(GREY, "BMP")[:-400], "damaged: truncated"),
    "truncated.pgm": (lambda: encoded(GREY, "PPM")[:-400], "damaged: truncated"),
    "flipped-bit.png": (lambda: flipped(encoded(GREY, "PNG", compress_level=0), 1000), "damaged: wrong checksum"),
    "only-a-signature.png": (lambda: b"\x89PNG\r\n\x1a\n", "damaged: truncated"),
    "only-a-signature.jpg": (lambda: b"\xff\xd8\xff\xe0", "damaged"),
    "zeros.png": (lambda: bytes(4000), "no image of a known format"),
    "noise.png": (lambda: np.random.default_rng(0).bytes(4000), "no image of a known format"),
    "report.png": (lambda: b"Severe gonarthrosis of the left knee.", "no image of a known format"),
    "report-pdf.png": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "archive.png": (lambda: b"PK\x03\x04" + bytes(40), "a ZIP archive"),
    "page.png": (lambda: b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
    "drawing.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "drawing-xml.svg": (lambda: b'<?xml version="1.0"?><svg/>', "SVG"),
    "pointer.png": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "postscript.png": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\nshowpage",
        "PostScript",
    ),
    "photoshop.png": (lambda: b"8BPS\0\x01" + bytes(40), "Photoshop"),
    "60000x60000.png": (lambda: png_claiming(60000, 60000), "pixels"),
    "11000x11000.png": (lambda: png_claiming(11000, 11000), "11000 x 11000 pixels"),
    "no-width.png": (lambda: png_claiming(0, 5), "damaged|pixels"),
    "65535x65535.jpg": (
        lambda: encoded(GREY, "JPEG").replace(struct.pack(">HH", 48, 64), b"\xff\xff\xff\xff", 1),
        "pixels|damaged",
    ),
    "large-16-bit-colour.png": (lambda: huge_png(bitdepth=16, greyscale=False), "pixels of 16-bit colour"),
    "huge.tif": (lambda: retagged(tiff(RAMP), "ImageLength", 2**31), "pixels|damaged"),
    "huge.jp2": (lambda: encoded(GREY, "JPEG2000").replace(struct.pack(">II", 48, 64), b"\x7f" * 8), "pixels|damaged"),
    "icc-bomb.png": (lambda: png_with(b"iCCP", b"icc\0\0" + FLAT), "damaged"),
    "text-bomb.png": (lambda: png_with(b"zTXt", b"note\0\0" + FLAT), "damaged"),
    "international-bomb.png": (lambda: png_with(b"iTXt", b"n\0\1\0\0\0" + FLAT), "damaged"),
    "many-texts.png": (lambda: encoded(GREY, "PNG", pnginfo=MANY_TEXTS), "damaged"),
    "animated.png": (lambda: encoded(FRAMES[0], "PNG", **MANY), "has 3 frames; a radiograph has one"),
    "animated.gif": (lambda: encoded(FRAMES[0], "GIF", **MANY), "has 3 frames; a radiograph has one"),
    "animated.webp": (lambda: encoded(FRAMES[0], "WEBP", **MANY), "has 3 frames; a radiograph has one"),
    "pages.tif": (lambda: encoded(FRAMES[0], "TIFF", **MANY), "has 3 frames; a radiograph has one"),
    "deep-cmyk.tif": (lambda: tiff(np.dstack([DEEP] * 4), "separated"), "colours of 16 bits"),
    "deep-colour.ppm": (
        lambda: b"P6 64 48 4095\n" + np.dstack([DEEP >> 4] * 3).astype(">u2").tobytes(),
        "colours of 16 bits",
    ),
    "frame\nof.png": (lambda: b"nothing", "no image"),
    "dicom-in-name-only.dcm": (lambda: b"not a DICOM at all", "DICOM"),
}


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_grey(path)
    message = str(caught.value)
    assert (str(path) if str(path).isprintable() else repr(str(path))) in message
    assert message.isprintable(), "one line, whatever the file is called"


@pytest.mark.parametrize("name", REFUSED)
def test_bad_picture_is_refused_in_one_sentence(tmp_path, name):
    make, reason = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert_refused(path, reason)


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    Path("loop.png").symlink_to("loop.png")
    Path("nowhere.png").symlink_to("missing.png")
    for name in ("pipe.png", "socket.png", "/dev/zero"):
        assert_refused(Path(name), "cannot be read: it is a pipe, socket or device")
    assert_refused(Path(), "cannot be read: it is a folder")
    assert_refused(Path("loop.png"), "cannot be read")
    assert_refused(Path("nowhere.png"), "no such file")
    assert_refused(Path("pipe.png/image.png"), "cannot be read")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul\0.png", "surrogate\ud800.png", "missing\x1b[31m.png"])
def test_name_that_no_file_has_is_refused(tmp_path, name):
    assert_refused(tmp_path / name, "cannot be read|no such file")


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(GREY, "PNG"))
    if os.geteuid() == 0:  # root reads everything

        def refuse(*_args, **_options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    path.chmod(0)
    assert_refused(path, "cannot be read: Permission denied")


def test_file_larger_than_any_radiograph_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    assert_refused(path, "at most 536,870,912 are read")


def test_link_to_an_image_is_read(tmp_path):
    (tmp_path / "image.png").write_bytes(encoded(GREY, "PNG"))
    (tmp_path / "link.png").symlink_to("image.png")
    assert np.array_equal(read_grey(tmp_path / "link.png"), RAMP)


def test_pillow_never_starts_a_program(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for name in ("postscript.png", "report-pdf.png", "drawing.png"):
        (tmp_path / name).write_bytes(REFUSED[name][0]())
        assert_refused(tmp_path / name, REFUSED[name][1])


def huge_png(bitdepth: int = 8, greyscale: bool = True, alpha: bool = False) -> bytes:
    """10,000 x 9,990 black pixels, the most that is read, in some 2 MB."""
    size = (10_000, 9_990)
    row = bytes(size[0] * ((1 if greyscale else 3) + alpha) * bitdepth // 8)
    stream = io.BytesIO()
    writer = pypng.Writer(size=size, bitdepth=bitdepth, greyscale=greyscale, alpha=alpha, compression=1)
    writer.write_packed(stream, repeat(row, size[1]))
    return stream.getvalue()


MEASURE = """
import resource, sys
from pathlib import Path
from knee_siglip.imaging.decode.read import ImageError, read_grey
from knee_siglip.imaging.decode import dicom, raster
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_grey(Path(name))
    except ImageError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def grown_by(paths: list[Path]) -> int:
    """kB that a fresh interpreter grows by while it reads them; it must not crash."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only")
def test_memory_stays_bounded(tmp_path):
    bombs = [name for name in REFUSED if "bomb" in name or "000x" in name or "huge" in name or "35x" in name]
    paths = [tmp_path / name for name in (*bombs, "many-texts.png")]
    for path in paths:
        path.write_bytes(REFUSED[path.name][0]())
    assert grown_by(paths) < 150_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize(
    "kind", [{"greyscale": False, "alpha": True}, {"bitdepth": 16}], ids=["colour-alpha", "16-bit"]
)
def test_largest_image_takes_less_than_a_gigabyte(tmp_path, kind):
    path = tmp_path / "largest.png"
    path.write_bytes(huge_png(**kind))
    assert grown_by([path]) < 1_000_000
