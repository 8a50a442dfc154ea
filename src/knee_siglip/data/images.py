"""The one way from an image file to pixels: training, evaluation and inference all read images here."""

import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from knee_siglip.data.contrast import local_contrast
from knee_siglip.data.dicom import decode_dicom, is_dicom
from knee_siglip.data.grey import ImageError, MissingImageError, check_size, stretch

__all__ = [
    "VERSION",
    "ImageError",
    "MissingImageError",
    "Transform",
    "decode",
    "load_pixels",
    "read_bytes",
    "read_grey",
]

VERSION = 1
"""Of everything between file and pixels. Raise it whenever the same file would give other pixels: it is part of the
store's key and of every checkpoint, so that old pixels and new code never meet."""

DEEP_BITS = {"I": 32, "F": 32}
"""Bits per sample of Pillow's modes with more than 8; every `I;16...` has 16."""


def read_grey(path: Path) -> np.ndarray:
    """Read any supported file (PNG, JPEG, TIFF, DICOM and what else Pillow knows) as grey.

    Returns uint8 (H, W), upright. 8-bit greys stay as they are; deeper ones are stretched (see `grey.stretch`).

    Raises:
        ImageError: the file is missing, empty, truncated, too large or no image.
    """
    return decode(read_bytes(path), path)[0]


def load_pixels(path: Path, transform: "Transform") -> np.ndarray:
    """`read_grey`, then the transform: uint8 (S, S)."""
    return transform(read_grey(path))


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


def decode(data: bytes, path: Path) -> tuple[np.ndarray, int]:
    """Decode a file's bytes completely.

    path: only names the file, in errors and by its ending. Returns (uint8 (H, W), bits per sample in the file).
    """
    return decode_dicom(data, path) if is_dicom(data, path) else _decode_picture(data, path)


def _decode_picture(data: bytes, path: Path) -> tuple[np.ndarray, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                check_size(image.width, image.height, path)
                bits = 1 if image.mode == "1" else 16 if image.mode.startswith("I;16") else DEEP_BITS.get(image.mode, 8)
                image.load()
                return _grey(ImageOps.exif_transpose(image)), bits
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


@dataclass(frozen=True)
class Transform:
    """Grey image to the square that the encoder sees, its aspect ratio kept.

    fit: `pad` fits the whole image into the square, centred, and fills up with the border's median grey (black beside
    an ordinary radiograph, bright beside an inverted one: no edge that is not in the image); `crop` fills the square
    with the centre. contrast: `local` (see contrast.py) or `none`.
    """

    image_size: int
    fit: str
    contrast: str

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """grey: uint8 (H, W). Returns uint8 (S, S)."""
        image = Image.fromarray(grey)
        square = self._pad(image) if self.fit == "pad" else self._crop(image)
        return local_contrast(square) if self.contrast == "local" else square

    def to_dict(self) -> dict[str, Any]:
        """Version and parameters, as cache.json and checkpoints keep them."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Transform":
        """Inverse of `to_dict`; `ImageError` where another version of this code wrote it."""
        if values.get("version") != VERSION:
            raise ImageError(
                f"images were preprocessed with transform version {values.get('version')}, this knee-siglip has "
                f"version {VERSION}; run preprocess again, or use the knee-siglip that made them"
            )
        return cls(image_size=values["image_size"], fit=values["fit"], contrast=values["contrast"])

    @property
    def key(self) -> str:
        """Names the folder of the store: equal keys, equal pixels."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def _pad(self, image: Image.Image) -> np.ndarray:
        scale = self.image_size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        fitted = _resize(image, (width, height))
        border = np.concatenate([fitted[0], fitted[-1], fitted[:, 0], fitted[:, -1]])
        square = np.full((self.image_size, self.image_size), int(np.median(border)), dtype=np.uint8)
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        square[top : top + height, left : left + width] = fitted
        return square

    def _crop(self, image: Image.Image) -> np.ndarray:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return _resize(image, (self.image_size, self.image_size), box=(left, top, left + side, top + side))


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Antialiased: `reducing_gap` first halves a large image by box averages, which costs no visible detail."""
    return np.array(image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
