"""From a grey image to the square that the encoder sees. Training, evaluation and inference all go through here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knee_siglip.data.contrast import local_contrast
from knee_siglip.data.grey import ImageError
from knee_siglip.data.images import read_grey

VERSION = 1
"""Of everything between file and pixels. Raise it whenever the same file would give other pixels: it is part of the
store's key and of every checkpoint, so that old pixels and new code never meet."""


def load_pixels(path: Path, transform: "Transform") -> np.ndarray:
    """`read_grey`, then the transform: uint8 (S, S)."""
    return transform(read_grey(path))


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
