"""The one way from an image file to pixels: training, evaluation and inference all read images here."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from knee_siglip.data.dicom import decode_dicom, is_dicom
from knee_siglip.data.grey import Decoded, ImageError, MissingImageError, check_size, stretch

__all__ = ["Decoded", "ImageError", "MissingImageError", "decode", "read_bytes", "read_grey"]

DEEP_BITS = {"I": 32, "F": 32}
"""Bits per sample of Pillow's modes with more than 8; every `I;16...` has 16."""


def read_grey(path: Path) -> np.ndarray:
    """Read any supported file (PNG, JPEG, TIFF, DICOM and what else Pillow knows) as grey.

    Returns uint8 (H, W), upright. 8-bit greys stay as they are; deeper ones are stretched (see `grey.stretch`).

    Raises:
        ImageError: the file is missing, empty, truncated, too large or no image.
    """
    return decode(read_bytes(path), path).grey


def read_bytes(path: Path) -> bytes:
    """The file's bytes; `ImageError` where there is none or nothing in it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if not data:
        raise ImageError(f"{path}: is empty (0 bytes)")
    return data


def decode(data: bytes, path: Path) -> Decoded:
    """Decode a file's bytes completely.

    path: only names the file, in errors and by its ending.
    """
    return decode_dicom(data, path) if is_dicom(data, path) else _decode_picture(data, path)


def _decode_picture(data: bytes, path: Path) -> Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                check_size(image.width, image.height, path)
                bits = 1 if image.mode == "1" else 16 if image.mode.startswith("I;16") else DEEP_BITS.get(image.mode, 8)
                kind = f"{image.format} {image.mode}"
                image.load()
                return Decoded(_grey(ImageOps.exif_transpose(image)), bits, kind)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(f"{path}: is no image of a known format (PNG, JPEG, TIFF, DICOM)") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{path}: has far too many pixels for a radiograph") from None
        except Exception as error:  # Pillow's decoders raise nearly every type on a damaged file
            raise ImageError(f"{path}: is damaged: {str(error) or type(error).__name__}") from None


def _grey(image: Image.Image) -> np.ndarray:
    """Any Pillow mode to uint8 (H, W). Transparent parts become black, as air is in a radiograph."""
    if image.mode == "L" and "transparency" not in image.info:
        return np.array(image)
    if image.mode in DEEP_BITS or image.mode.startswith("I;16"):
        return stretch(np.asarray(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    elif image.mode not in ("1", "RGB"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))
