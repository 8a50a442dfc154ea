"""Millimetres to pixels: the pose of a knee on the detector, and fast anti-aliased shapes."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from knee_siglip.sample.findings import Side, View

COARSE = 4
"""Smooth fields (thickness, soft tissue) are computed on a grid this many times coarser than the picture."""

COLLIMATED_SHARE = 0.06
"""At most this share of each side of a picture is hidden by the collimator."""


@dataclass(frozen=True)
class Pose:
    """Where the knee lies in the picture. field_mm: width of the picture in mm; centre in mm from the joint."""

    field_mm: float
    angle: float
    centre: tuple[float, float]
    flip: int

    @property
    def reach_mm(self) -> float:
        """How far to either side of the joint's middle the picture surely shows, collimated or not."""
        return (0.5 - COLLIMATED_SHARE) * self.field_mm - abs(self.centre[0])


def draw_pose(rng: np.random.Generator, side: Side, view: View = "ap") -> Pose:
    """Half of the frontal pictures are cropped tightly as grading sets are, half show the whole exposure.

    A lateral one shows patella and pouch. A right knee has its +x on the picture's left: from the front its lateral
    side; from the side, whose outer one faces the tube, its back.
    """
    if view == "lateral":
        field_mm, centre = rng.uniform(108, 145), (rng.uniform(-13, -1), rng.uniform(-24, -6))
        return Pose(field_mm, np.deg2rad(rng.uniform(-8, 8)), centre, -1 if side == "right" else 1)
    field_mm = rng.uniform(100, 118) if rng.random() < 0.45 else rng.uniform(118, 166)
    slack = 0.5 * (field_mm - 76)
    centre = (rng.uniform(-1, 1) * min(0.55 * slack, 18), rng.uniform(-1, 1) * min(0.14 * field_mm, 22))
    return Pose(field_mm, np.deg2rad(rng.uniform(-8, 8)), centre, -1 if side == "right" else 1)


class Canvas:
    """A square picture of `size` pixels onto which shapes given in local millimetres are drawn."""

    def __init__(self, size: int, pose: Pose):
        self.size = size
        self.scale = size / pose.field_mm
        c, s = np.cos(pose.angle), np.sin(pose.angle)
        self.matrix = self.scale * np.array([[c * pose.flip, -s], [s * pose.flip, c]])
        self.offset = size / 2 - self.matrix @ np.array(pose.centre)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """points: (P, 2) mm -> (P, 2) pixels, x and y."""
        return points @ self.matrix.T + self.offset

    def coarse_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Local x and y in mm at the pixels of the coarse grid, each (size / COARSE, size / COARSE) float32."""
        n = self.size // COARSE
        centres = (np.arange(n) + 0.5) * COARSE
        inverse = np.linalg.inv(self.matrix)
        px, py = centres[None, :] - self.offset[0], centres[:, None] - self.offset[1]
        x = inverse[0, 0] * px + inverse[0, 1] * py
        y = inverse[1, 0] * px + inverse[1, 1] * py
        return x.astype(np.float32), y.astype(np.float32)

    def fill(self, polygons: list[np.ndarray], blur: float = 0, coarse: bool = False) -> np.ndarray:
        """Union of filled polygons (P, 2) mm -> float32 (H, W) in 0-1; `blur` in pixels softens the edge.

        Edges are hard without it; the detector's blur at the end smooths them all at once.
        """
        return to_float(self.shape(polygons, coarse), blur)

    def shape(self, polygons: list[np.ndarray], coarse: bool = False) -> Image.Image:
        """Union of filled polygons (P, 2) mm -> 8-bit image, 255 inside."""
        n, factor = (self.size // COARSE, COARSE) if coarse else (self.size, 1)
        image = Image.new("L", (n, n))
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            draw.polygon((self.to_pixels(polygon) / factor).ravel().tolist(), fill=255)
        return image

    def strokes(self, lines: list[tuple[np.ndarray, float, float]], blur: float = 0) -> np.ndarray:
        """Polylines (points mm, width mm, strength 0-1) -> float32 (H, W); a later stroke covers an earlier one."""
        image = Image.new("L", (self.size, self.size))
        draw = ImageDraw.Draw(image)
        for points, width_mm, strength in lines:
            width = max(1, round(width_mm * self.scale))
            draw.line(self.to_pixels(points).ravel().tolist(), fill=round(255 * strength), width=width, joint="curve")
        return to_float(image, blur)

    def discs(self, specks: np.ndarray) -> np.ndarray:
        """specks: (K, 3) x, y, radius in mm -> float32 (H, W)."""
        image = Image.new("L", (self.size, self.size))
        draw = ImageDraw.Draw(image)
        centres, radii = self.to_pixels(specks[:, :2]), specks[:, 2] * self.scale
        for (x, y), r in zip(centres, radii, strict=True):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        return to_float(image)

    def enlarge(self, field: np.ndarray) -> np.ndarray:
        """Coarse field -> float32 (H, W), bilinear."""
        return np.asarray(Image.fromarray(field).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def box(self, points: np.ndarray) -> list[float]:
        """Normalised [x0, y0, x1, y1] of a point cloud in mm, clipped to the picture, rounded to 4 digits."""
        pixels = self.to_pixels(points)
        box = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]) / self.size
        return [round(float(v), 4) for v in np.clip(box, 0, 1)]


def to_float(image: Image.Image, blur: float = 0) -> np.ndarray:
    """8-bit grey image -> float32 (H, W) in 0-1, box-blurred (four times faster than a Gaussian); radius in pixels."""
    if blur:
        box = box_around(image, math.ceil(blur) + 1)
        blurred = Image.new("L", image.size)
        blurred.paste(image.crop(box).filter(ImageFilter.BoxBlur(blur)), box)
        image = blurred
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)


def box_around(image: Image.Image, margin: int) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what is not black and `margin` pixels around it; the whole image if all is black.

    What is smooth or blurred need only be computed there: most shapes take a small part of the picture.
    """
    left, top, right, bottom = image.getbbox() or (0, 0, *image.size)
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(image.width, right + margin),
        min(image.height, bottom + margin),
    )
