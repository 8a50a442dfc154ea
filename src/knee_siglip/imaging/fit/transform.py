"""From a grey image to the square that the encoder sees. Training, evaluation and inference all go through here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from knee_siglip.imaging.decode.decoded import ImageError
from knee_siglip.imaging.decode.inversion import inversion_probability
from knee_siglip.imaging.decode.read import read_grey
from knee_siglip.imaging.fit.contrast import local_contrast
from knee_siglip.imaging.fit.resize import resize

VERSION = 3
"""Version of everything between file and pixels. Raise it when the same file would give other pixels: it is part of the
store's key and of every checkpoint, so old pixels never meet new code. 2: sums that are exact on any machine
(resize.py, contrast.py), `inversion`; on average one grey away from 1. 3: DICOMs with tables, lone slopes or
PresentationLUTShape that 2 misread, and two knees on one film under `inversion: correct`; all else as in 2."""

READABLE = (2, VERSION)
"""Versions whose checkpoints are used as they are: images that were read right then give the same pixels now."""


def load_pixels(path: Path, transform: "Transform") -> np.ndarray:
    """`read_grey`, then the transform: uint8 (S, S)."""
    return transform(read_grey(path))


@dataclass(frozen=True)
class Transform:
    """Grey image to the square that the encoder sees, its aspect ratio kept.

    fit: `pad` centres the whole image and fills up with its border's median grey, so as to add no edge; `crop` fills
    the square with the image's centre. contrast: `local` (contrast.py) or `none`. inversion: `keep`, or `correct` to
    invert a radiograph that is probably shown inverted (inversion.py).
    """

    image_size: int
    fit: str
    contrast: str
    inversion: str = "keep"

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """grey: uint8 (H, W). Returns uint8 (S, S)."""
        if self.inversion == "correct" and inversion_probability(grey) > 0.5:
            grey = 255 - grey
        if self.fit == "pad":
            square = self._pad(grey)
        else:
            side, size = min(grey.shape), self.image_size
            top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
            square = resize(grey[top : top + side, left : left + side], size, size)
        return local_contrast(square) if self.contrast == "local" else square

    def to_dict(self) -> dict[str, Any]:
        """Version and parameters, as cache.json and checkpoints keep them."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Transform":
        """Inverse of `to_dict`; `ImageError` where another version of this code wrote it."""
        if values.get("version") not in READABLE:
            raise ImageError(
                f"images were preprocessed with transform version {values.get('version')}, this knee-siglip has "
                f"version {VERSION}; run preprocess again, or use the knee-siglip that made them"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def key(self) -> str:
        """Names the folder of the store: equal keys, equal pixels."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def place_boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Map boxes (K, 4): left, top, right, bottom, of an image (height, width) onto the square.

        From shares of the image's width and height to pixels; with `crop` they may reach beyond the square.
        """
        wide: float
        high: float
        if self.fit == "pad":
            high, wide = self._fitted(height, width)
            left, top = float((self.image_size - wide) // 2), float((self.image_size - high) // 2)
        else:
            short = min(height, width)
            scale = self.image_size / short
            high, wide = height * scale, width * scale
            left, top = -((width - short) // 2) * scale, -((height - short) // 2) * scale
        return np.asarray(boxes, dtype=np.float64) * [wide, high, wide, high] + [left, top, left, top]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """Size of the whole image inside the square."""
        scale = self.image_size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _pad(self, grey: np.ndarray) -> np.ndarray:
        height, width = self._fitted(*grey.shape)
        fitted = resize(grey, height, width)
        if height == width:
            return fitted
        border = np.concatenate([fitted[0], fitted[-1], fitted[:, 0], fitted[:, -1]])
        square = np.full((self.image_size, self.image_size), int(np.median(border)), dtype=np.uint8)
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        square[top : top + height, left : left + width] = fitted
        return square
