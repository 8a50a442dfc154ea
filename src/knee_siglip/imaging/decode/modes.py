"""Every mode and depth of a Pillow image to upright grey."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps

from knee_siglip.imaging.decode.decoded import MAX_PIXELS, ImageError, shown
from knee_siglip.imaging.decode.exposure import bands, stretch

DEEP_BITS = {"I": 32, "F": 32}
"""Bits per sample of Pillow's modes with more than 8; every `I;16...` has 16."""

COLOURS = ("LA", "RGB", "RGBA", "CMYK", "LAB", "YCbCr")
"""Modes in which Pillow keeps 8 of a file's 16 bits, without a word."""

PHOTOMETRIC, BITS_PER_SAMPLE, SAMPLE_FORMAT, ORIENTATION = 262, 258, 339, 274
"""TIFF tags; the last one is also EXIF's."""

OTHER_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
"""Pillow unpacks the first or the last byte of a 16-bit colour: reading it the other way round gives the low byte."""

LUMA = np.array([299, 587, 114], dtype=np.uint32)
"""ITU-R 601 in thousandths, as Pillow's `convert("L")`."""


def sample_bits(image: Image.Image, data: bytes) -> int:
    """Bits per sample of an opened, not yet loaded image."""
    if image.mode == "1":
        return 1
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return max(8, data[24])
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))  # type: ignore[attr-defined]
        return 8 if bits <= 8 else 16 if bits <= 16 else 32
    if image.format == "JPEG2000" and image.mode in COLOURS:
        siz = data.find(b"\xff\x4f\xff\x51")  # ISO 15444-1, A.5.1: Ssiz of the first component
        return 16 if siz >= 0 and data[siz + 42 : siz + 43] > b"\x07" and (data[siz + 42] & 0x7F) > 7 else 8
    if image.format == "PPM":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        deep = isinstance(arguments, tuple) and len(arguments) == 2 and int(arguments[1]) > 255  # mode, largest value
        return 32 if image.mode == "F" else 16 if image.mode == "I" or deep else 8
    return DEEP_BITS.get(image.mode, 8)


def grey_of(image: Image.Image, data: bytes) -> np.ndarray:
    """An opened image of any mode to uint8 (H, W). Transparent parts become black, as air is in a radiograph."""
    tags = dict(image.tag_v2) if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    image.load()
    upright = _upright(image, image)
    if image.mode in DEEP_BITS or image.mode.startswith("I;16"):
        return _deep_grey(upright, tags, image.info.get("transparency"))
    if image.mode == "L" and tags.get(SAMPLE_FORMAT, (1,))[0] == 2:
        return np.array(upright) ^ 0x80  # signed bytes, that Pillow takes for unsigned ones
    if image.mode == "L" and "transparency" not in image.info:
        return np.array(upright)
    if image.mode == "L" and data.startswith(b"\x89PNG"):
        # Pillow scales the greys of less than 8 bits, and not the transparent one
        upright.info["transparency"] = image.info["transparency"] * 255 // (2 ** data[24] - 1)
    return np.array(_flat_grey(upright))


def _flat_grey(image: Image.Image) -> Image.Image:
    """8-bit colours, with or without transparency, to mode L."""
    if image.has_transparency_data:
        layers = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        return ImageChops.multiply(layers.convert("L"), layers.getchannel("A"))
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB")) or image
    elif image.mode not in ("1", "RGB"):
        image = image.convert("RGB")
    return image.convert("L")


def _deep_grey(image: Image.Image, tags: dict[int, object], transparent: object) -> np.ndarray:
    """Modes I;16, I and F, stretched."""
    values = np.asarray(image)
    # a TIFF that does not say is unsigned: TIFF 6.0, section 19
    if values.dtype == np.int32 and tags.get(SAMPLE_FORMAT, (1,)) == (1,) and tags.get(BITS_PER_SAMPLE) == (32,):
        values = values.view(np.uint32)  # Pillow lets the upper half wrap round to negative numbers
    if isinstance(transparent, int):
        usable = values != transparent
        return np.where(usable, stretch(values, usable), 0).astype(np.uint8)
    grey = stretch(values)
    return 255 - grey if tags.get(PHOTOMETRIC) == 0 else grey  # WhiteIsZero, which Pillow heeds in 8 bits only


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """`source`, loaded, knows the orientation. (A TIFF turns itself when it is loaded and then forgets its tag.)"""
    image.getexif()[ORIENTATION] = source.getexif().get(ORIENTATION, 1)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def deep_colour(image: Image.Image, data: bytes, path: Path) -> np.ndarray:
    """16-bit RGB, RGBA and grey with alpha to uint8 (H, W), from all 16 bits.

    Raises:
        ImageError: 16-bit colours of another kind, of which Pillow hands out the upper half only.
    """
    if image.width * image.height > MAX_PIXELS // 2:  # two readings and 16-bit layers: twice an 8-bit image's memory
        raise ImageError(
            f"{shown(path)}: has {image.width} x {image.height} pixels of 16-bit colour; "
            f"at most {MAX_PIXELS // 2:,} are read"
        )
    rawmode = _rawmode(image)
    alpha: np.ndarray | None
    if rawmode == "LA;16B":  # the same bytes, read as four channels: grey high and low, alpha high and low
        _read_as(image, "RGBA")
        red, green, blue, last = image.split()
        grey, alpha = _join(red, green), _join(blue, last)
    elif rawmode[:-4] in ("RGB", "RGBA", "RGBX") and rawmode[-4:] in OTHER_BYTE and "transparency" not in image.info:
        grey, alpha = _colours(image, data, rawmode)
    else:
        raise ImageError(f"{shown(path)}: has {image.mode} colours of 16 bits; save it as 8-bit colour or 16-bit grey")
    usable = None if alpha is None else alpha > 0
    if alpha is not None:
        grey = (grey.astype(np.uint32) * alpha // 65535).astype(np.uint16)
    stretched = stretch(grey, usable)
    return np.array(_upright(Image.fromarray(stretched), image))


def _rawmode(image: Image.Image) -> str:
    """How the decoder unpacks samples; '' where the tiles do not agree (a TIFF with separate planes)."""
    rawmodes = {tile.args if isinstance(tile.args, str) else str(tile.args[0]) for tile in image.tile}  # type: ignore[attr-defined]
    return rawmodes.pop() if len(rawmodes) == 1 else ""


def _read_as(image: Image.Image, rawmode: str) -> None:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]
    image.load()


def _colours(image: Image.Image, data: bytes, rawmode: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Luma and alpha (None where there is none), uint16 (H, W), from two readings: high bytes, low bytes."""
    image.load()
    with Image.open(io.BytesIO(data), formats=(image.format or "",)) as other:
        _read_as(other, rawmode[:-4] + OTHER_BYTE[rawmode[-4:]])
        luma = np.empty((image.height, image.width), dtype=np.uint16)
        for rows in bands(luma.shape):
            box = (0, rows.start, image.width, rows.stop)
            high = np.asarray(image.crop(box))[..., :3] @ LUMA
            low = np.asarray(other.crop(box))[..., :3] @ LUMA
            luma[rows] = (high * 256 + low + 500) // 1000
        if rawmode.startswith("RGBA"):
            return luma, _join(image.getchannel("A"), other.getchannel("A"))
    return luma, None


def _join(high: Image.Image, low: Image.Image) -> np.ndarray:
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
