"""PNG, JPEG, TIFF and other raster formats to grey, in every mode, depth and orientation that Pillow reads."""

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from knee_siglip.imaging.decode.decoded import Decoded, ImageError, check_size, shown
from knee_siglip.imaging.decode.jpeg import check_complete
from knee_siglip.imaging.decode.modes import COLOURS, deep_colour, grey_of, sample_bits
from knee_siglip.imaging.decode.png import SIGNATURE, Content, check_rows, decode_plain, read_chunks

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""Raster formats only: Pillow's EPS would start Ghostscript, and rare formats are rarely tested decoders."""

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
    b"\0\0\0\x0cjP": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}

OTHER_FILES = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML (an SVG drawing, perhaps)",
    b"<!doctype html": "an HTML page (a failed download, perhaps)",
    b"<html": "an HTML page (a failed download, perhaps)",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file with `git lfs pull`",
    b"8bps": "a Photoshop file",
}
"""First bytes, lower case, of what is often found under an image's name."""

SUBFILE_TYPE = 254
"""TIFF tag; bit 0 marks a reduced copy of another page."""


def is_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is read here (PPM has no clear ones)."""
    return data.startswith(tuple(SIGNATURES))


def decode_picture(data: bytes, path: Path) -> Decoded:
    """Decode a file's bytes: plain PNGs by `decode_plain`, all else with Pillow.

    Raises:
        ImageError: no image of `FORMATS`, damaged, too large, several frames.
    """
    try:
        content = read_chunks(data, path) if data.startswith(SIGNATURE) else Content([], [])
        return decode_plain(data, content) or _decode_by_pillow(data, content, path)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{shown(path)}: {_other_file(data)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{shown(path)}: has far too many pixels for a radiograph") from None
    except MemoryError:
        raise ImageError(f"{shown(path)}: takes more memory to decode than there is") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on a damaged file
        raise ImageError(f"{shown(path)}: is damaged: {_reason(error)}") from None


def _decode_by_pillow(data: bytes, content: Content, path: Path) -> Decoded:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_size(image.width, image.height, path)
        _check_single(image, path)
        bits, kind = sample_bits(image, data), f"{image.format} {image.mode}"
        if bits == 16 and image.mode in COLOURS:
            grey, kind = deep_colour(image, data, path), f"{kind};16"
        else:
            grey = grey_of(image, data)
        if image.format == "PNG":
            check_rows(data, content, grey, path)
        if image.format == "JPEG":
            check_complete(data, image, grey, path)
        return Decoded(grey, bits, kind)


def _reason(error: Exception) -> str:
    """One line of what Pillow says, without the file's own text and without an object's address."""
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    return text if text and len(text) < 60 and text.isascii() and text.isprintable() else type(error).__name__


def _other_file(data: bytes) -> str:
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, name in OTHER_FILES.items():
        if start.startswith(signature.lower()):
            return f"is no image but {name}"
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            return f"is damaged: it begins like {name}, but has no usable header"
    return "is no image of a known format (PNG, JPEG, TIFF, DICOM)"


def _check_single(image: Image.Image, path: Path) -> None:
    """Refuse several frames, except a JPEG's preview (MPO) and a TIFF's reduced pages."""
    frames = getattr(image, "n_frames", 1)
    if frames < 2 or image.format == "MPO":
        return
    if image.format == "TIFF" and frames <= 16:
        reduced = 0
        for page in range(1, frames):
            image.seek(page)
            reduced += int(image.tag_v2.get(SUBFILE_TYPE, 0)) & 1  # type: ignore[attr-defined]
        image.seek(0)
        if reduced == frames - 1:
            return
    raise ImageError(f"{shown(path)}: has {frames} frames; a radiograph has one")
