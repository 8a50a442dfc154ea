"""Synthetic joints that look more like radiographs than the sample's: for pretraining only, never part of a dataset.

Against `knee_siglip.sample` the picture is cropped to the joint, texture is fine and of any strength, soft tissue has
streaks, exposure saturates, outlines vary more, and joint spaces, osteophytes and sclerosis of both sides vary almost
independently, so that an encoder has to measure each of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from knee_siglip.sample.anatomy import FEMUR, FIBULA, NOTCH, PATELLA, SPINES, TIBIA, below, smooth
from knee_siglip.sample.canvas import COARSE, Canvas, Pose
from knee_siglip.sample.radiograph import random_window

MEASURES = (
    *("gap_left", "gap_right"),
    *("femoral_spur_left", "femoral_spur_right", "tibial_spur_left", "tibial_spur_right"),
    *("sclerosis_left", "sclerosis_right"),
    *("narrowest", "longest_spur", "severity"),
)
"""What the encoder learns to measure, by the picture's left and right; millimetres but sclerosis and severity (0-1)."""

SIDES = (-1, 1)
"""Medial and lateral: the sign of x in local millimetres."""

TILE = 1024
Span = tuple[float, float]


@dataclass(frozen=True)
class Disease:
    """Osteoarthritis by side (medial, lateral). gap, femoral and tibial spur in mm; sclerosis 0-1."""

    gap: Span
    femoral: Span
    tibial: Span
    sclerosis: Span

    @property
    def grade(self) -> int:
        """Kellgren-Lawrence grade by rule: narrowing and osteophytes, bone on bone."""
        gap, spur = min(self.gap), max(*self.femoral, *self.tibial)
        if gap < 0.9:
            return 4
        if gap < 2.6 and spur > 1.5:
            return 3
        if spur > 2.2:
            return 2
        return 1 if spur > 1.0 or gap < 2.6 else 0

    def measures(self, flip: int) -> np.ndarray:
        """(len(MEASURES),) float32; flip -1 is a right knee, whose lateral side is on the picture's left."""
        pairs = [self.gap, self.femoral, self.tibial, self.sclerosis]
        sides = [value for pair in pairs for value in (pair if flip > 0 else pair[::-1])]
        narrowest, longest = min(self.gap), max(*self.femoral, *self.tibial)
        severity = 0.5 * (1 - min(narrowest / 5, 1)) + 0.35 * min(longest / 7, 1) + 0.15 * max(self.sclerosis)
        return np.array([*sides, narrowest, longest, severity], dtype=np.float32)


def draw_disease(rng: np.random.Generator) -> Disease:
    """A worse and a better side; each sign follows the side's severity loosely."""
    worst = rng.beta(1, 1.4)
    severity = np.array([worst, worst * rng.uniform(0, 0.9)])
    if rng.random() < 0.4:
        severity = severity[::-1]

    def signs(largest: float) -> Span:
        amounts = largest * np.clip(severity * rng.uniform(0.3, 1.3, 2) + rng.normal(0, 0.08, 2), 0, 1.1)
        return float(amounts[0]), float(amounts[1])

    healthy = rng.uniform(4.0, 6.4) + rng.normal(0, 0.5, 2) + (0.0, 0.5)
    gap = np.maximum(healthy * (1 - np.clip(1.15 * severity + rng.normal(0, 0.12, 2), 0, 1.0)), 0.1)
    return Disease((float(gap[0]), float(gap[1])), signs(8.0), signs(8.0), signs(1.0))


def draw_joint(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """One radiograph, uint8 (size, size), its measures (len(MEASURES),), its grade, and 1 for a left knee, else -1."""
    disease, flip = draw_disease(rng), 1 if rng.random() < 0.5 else -1
    field = rng.uniform(87, 106) if rng.random() < 0.8 else rng.uniform(100, 135)
    centre = (rng.normal(0, 3), -rng.normal(0.08, 0.05) * field)
    canvas = Canvas(size, Pose(field, np.deg2rad(rng.normal(0, 3)), centre, flip))
    bones = _Bones(rng, disease)
    path = _bony(canvas, bones, rng) + _soft(canvas, rng)
    image = _expose(_elastic(path, rng), rng)
    return image, disease.measures(flip), disease.grade, flip


class _Bones:
    """Outlines in mm, (P, 2) each, and the lines inside: (points, width mm, strength)."""

    def __init__(self, rng: np.random.Generator, disease: Disease):
        self.disease = disease
        self.size = np.array([rng.normal(1, 0.05), rng.normal(1, 0.06)])
        self.bend = np.tan(np.deg2rad(rng.normal(-4, 4)) / 2)
        femur, tibia = FEMUR + rng.normal(0, 0.7, FEMUR.shape), TIBIA + rng.normal(0, 0.6, TIBIA.shape)
        femur[[11, 19], 1] = 0.0  # the lowest points of the condyles define the joint space
        tibia[[10, 19], 1] = 0.4
        femur[NOTCH] *= (rng.uniform(0.8, 1.25), rng.uniform(0.7, 1.25))
        tibia[SPINES, 1] *= rng.uniform(0.6, 1.3)
        for outline in (femur, tibia):  # shafts of any width: the crop shows little more than the condyles
            away = np.clip((np.abs(outline[:, 1]) - 25) / 60, 0, 1)
            outline[:, 0] *= 1 + rng.uniform(0.1, 0.8) * away
        self.femur, self.tibia = self.proximal(smooth(femur)), self.distal(smooth(tibia))
        self.fibula = self.distal(smooth(FIBULA + np.array((rng.normal(0, 2.5), rng.normal(0, 5)))))
        patella = PATELLA * rng.normal(1.25, 0.12, 2) + (rng.normal(0, 3), rng.normal(-2, 7))
        self.patella = self.proximal(smooth(patella))
        self.lines = self._lines(rng, tibia, femur)
        self.femur_spurs, self.tibia_spurs = self._spurs(rng)

    def proximal(self, points: np.ndarray) -> np.ndarray:
        """Points (P, 2) mm of the standard femur to those of this knee."""
        reach = np.maximum(np.abs(points[:, 1]) - 10, 0)
        bent: np.ndarray = np.column_stack([points[:, 0] - self.bend * reach, points[:, 1]]) * self.size
        return bent

    def distal(self, points: np.ndarray) -> np.ndarray:
        """The same of the tibia and fibula: further down by the joint space, tilted between the sides."""
        medial, lateral = np.array(self.disease.gap) / self.size[1]
        y = points[:, 1] + (lateral + medial) / 2 + (lateral - medial) / 44 * np.clip(points[:, 0], -45, 45)
        return self.proximal(np.column_stack([points[:, 0], y]))

    def _lines(self, rng: np.random.Generator, tibia: np.ndarray, femur: np.ndarray) -> list:
        lines = []
        for indices in (slice(8, 13), slice(17, 23)):  # subchondral plates and the plateau's far rim, which varies
            top = smooth(tibia[indices], 4, closed=False)
            lines.append((self.distal(below(top, 0.9)), rng.uniform(1, 2.6), rng.uniform(0.4, 1)))
            lines.append((self.distal(below(top, rng.uniform(-1.2, 5))), rng.uniform(0.6, 1.4), rng.uniform(0.1, 0.5)))
        for indices in (slice(9, 13), slice(18, 22)):
            edge = smooth(femur[indices], 4, closed=False)
            lines.append((self.proximal(below(edge, -0.7)), rng.uniform(0.6, 1.6), rng.uniform(0.1, 0.6)))
        for s in SIDES:
            wall = np.array([(s * 14, -3), (s * 12, -12), (s * 11.5, -22), (s * 13.5, -rng.uniform(24, 36))])
            strength = rng.uniform(0.05, 0.4)
            lines.append((self.proximal(smooth(wall, 4, closed=False)), rng.uniform(0.6, 1.4), strength))
        for s, bone in ((1, self.distal), (-1, self.proximal)):  # growth-plate scars
            height = s * rng.uniform(13, 24) - (s < 0) * 10
            scar = np.array([(x, height) for x in (-34, -18, 0, 16, 32)]) + rng.normal(0, 1.5, (5, 2))
            lines.append((bone(smooth(scar, 4, closed=False)), 0.9, rng.uniform(0, 0.35)))
        return lines

    def _spurs(self, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Beaks on the four margins, of varying direction and thickness."""
        femoral, tibial = [], []
        for s, n_femoral, n_tibial in zip(SIDES, self.disease.femoral, self.disease.tibial, strict=True):
            up, n = rng.uniform(-0.1, 0.5), n_tibial
            beak = np.array([(37, 0.3), (41 + 0.5 * n, -0.5 * up * n), (41 + n, -up * n), (41 + 0.8 * n, 2.5), (40, 9)])
            if n > 0.4:
                tibial.append(self.distal(smooth(beak * (s, 1), 4)))
            up, n = rng.uniform(-0.4, 0.3), n_femoral
            beak = np.array(
                [(36, -3.5), (40 + 0.5 * n, -2.8), (41.5 + n, -4 - up * n), (41.5 + 0.7 * n, -7), (41, -16)]
            )
            if n > 0.4:
                femoral.append(self.proximal(smooth(beak * (s, 1), 4)))
        return femoral, tibial

    def sclerosis(self) -> list:
        """Dense bone below the plateau and above the condyle of each side."""
        lines = []
        for s, strength in zip(SIDES, self.disease.sclerosis, strict=True):
            plateau = self.distal(np.array([(s * 12, 1.5), (s * 22, 3.0), (s * 38, 3.0)]))
            condyle = self.proximal(np.array([(s * 15, -4.0), (s * 24, -2.5), (s * 37, -6.0)]))
            lines += [(plateau, 5.5, strength), (condyle, 4.0, 0.6 * strength)]
        return lines


def _bony(canvas: Canvas, bones: _Bones, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of the bones, float32 (S, S): thickness, cortical rims, lines, texture."""
    rim, inner = rng.uniform(0.3, 1.1), rng.uniform(0.1, 0.25)
    proximal = canvas.fill([bones.femur, *bones.femur_spurs])
    distal = canvas.fill([bones.tibia, *bones.tibia_spurs])
    fibula, patella = canvas.fill([bones.fibula]), canvas.fill([bones.patella], blur=4)
    width = rng.uniform(0.9, 1.8) * canvas.scale
    path = np.zeros_like(proximal)
    for mask, depth, share in ((proximal, 20, 1.0), (distal, 18, 1.0), (fibula, 7, 0.4)):
        thick = canvas.enlarge(_rod(mask, depth, canvas.scale))
        path += np.float32(share) * mask * (rim + inner - rim * _box(mask, width) + 0.95 * thick)
    path += rng.uniform(0.0, 0.2) * patella * (1 + 0.8 * (1 - _box(patella, width)))
    inside = np.maximum(proximal, distal)
    path += rng.uniform(0.3, 0.8) * canvas.strokes(bones.lines, blur=rng.uniform(0, 1)) * inside
    dense = canvas.strokes(bones.sclerosis(), blur=1.8 * canvas.scale)
    path += rng.uniform(0.45, 0.9) * dense * inside
    return path * (1 + np.float32(np.exp(rng.uniform(-3.7, -1.7))) * _texture(canvas.size, rng))


def _rod(mask: np.ndarray, depth_mm: float, scale: float) -> np.ndarray:
    """Coarse thickness 0-1 that rises from the edge like a round rod's."""
    coarse = mask[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE] > 0.5
    if not coarse.any():
        return np.zeros(coarse.shape, dtype=np.float32)
    edge = ndimage.distance_transform_edt(np.pad(coarse, 1, mode="edge"))[1:-1, 1:-1] * (COARSE / scale)
    return np.sqrt(1 - (1 - np.minimum(edge / depth_mm, 1)) ** 2).astype(np.float32)


def _box(mask: np.ndarray, radius: float) -> np.ndarray:
    blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def _soft(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Muscle and fat: a round leg, blotches, and streaks along it outside the bones; float32 (S, S)."""
    x, y = canvas.coarse_grid()
    shift = rng.normal(0, 5)
    path = np.zeros_like(x)
    for half_width in (rng.uniform(50, 75), rng.uniform(42, 62)):
        path += rng.uniform(0.4, 1.5) * np.sqrt(np.clip(1 - ((x - shift) / half_width) ** 2, 0, 1))
    path *= 1 + rng.uniform(-0.4, 0.4) * y / 100
    blotches = rng.standard_normal((7, 7), dtype=np.float32)
    path *= 1 + 0.06 * np.asarray(Image.fromarray(blotches).resize(x.shape, Image.Resampling.BICUBIC))
    lines = []
    for _ in range(rng.integers(2, 12)):
        start = rng.choice(SIDES) * rng.uniform(36, 62)
        along = np.linspace(-75, 75, 6)
        points = np.column_stack([start + np.cumsum(rng.normal(0, 1.5, 6)), along])
        lines.append((smooth(points, 4, closed=False), rng.uniform(0.6, 5), rng.uniform(0.2, 1)))
    streaks = canvas.strokes(lines, blur=rng.uniform(0.5, 3))
    return canvas.enlarge(path) + np.float32(rng.uniform(-0.12, 0.2)) * streaks


def _elastic(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bend the picture smoothly, by up to some per cent of its side: shapes that the outlines do not have."""
    size = len(path)
    moves = []
    for _ in range(2):
        nodes = rng.standard_normal((5, 5), dtype=np.float32) * np.float32(size * rng.uniform(0, 0.012))
        moves.append(np.asarray(Image.fromarray(nodes).resize((size, size), Image.Resampling.BICUBIC)))
    rows, columns = np.indices(path.shape, dtype=np.float32)
    bent: np.ndarray = ndimage.map_coordinates(path, [rows + moves[0], columns + moves[1]], order=1, mode="nearest")
    return bent


def _expose(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Attenuation to uint8 greys, bone white: scatter, blur, noise, window, gamma."""
    size = len(path)
    share = np.float32(rng.uniform(0, 0.6))
    veil = -np.log(ndimage.gaussian_filter(np.exp(-path[::8, ::8]), 5) + 1e-4)
    path = (1 - share) * path + share * np.asarray(Image.fromarray(veil).resize((size, size)))
    path = ndimage.gaussian_filter(path, rng.uniform(0.3, 1.1))
    path = path + np.float32(np.exp(rng.uniform(-6, -3))) * random_window(_grain(), size, rng)
    low, high = np.percentile(path[::8, ::8], [rng.uniform(0, 12), rng.uniform(94, 100)])
    span = high - low
    low, high = low - rng.uniform(0, 1.2) * span, high + rng.uniform(-0.12, 0.7) * span
    grey = np.clip((path - low) / (high - low), 0, 1) ** np.exp(rng.normal(0, 0.35))
    top = rng.uniform(170, 255)
    return np.rint(top * grey).astype(np.uint8)


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Trabeculae: fine struts along the shaft, crossing ones and clouds in any proportion; unit variance."""
    tiles = _trabeculae()
    weights = rng.dirichlet([2.0, 2.0, 1.5, 0.5]) + 0.05
    mixed = np.sum(
        [np.float32(w) * random_window(tile, size, rng) for w, tile in zip(weights, tiles, strict=True)], axis=0
    )
    unit: np.ndarray = mixed / np.float32(np.sqrt(np.square(weights).sum()))
    return unit


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(21).standard_normal((TILE, TILE), dtype=np.float32), 0.7)
    return noise / noise.std()


@lru_cache(maxsize=1)
def _trabeculae() -> list[np.ndarray]:
    rng = np.random.default_rng(22)
    tiles = []
    for sigma in ((3.0, 0.6), (7.0, 0.9), (1.0, 1.6), (5.0, 5.0)):
        tile = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE), dtype=np.float32), sigma)
        tiles.append((tile / tile.std()).astype(np.float32))
    return tiles
