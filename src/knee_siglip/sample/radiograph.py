"""From outlines to a radiograph: X-ray path (Beer-Lambert), scatter, noise, exposure, collimation, lead marker."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from scipy import ndimage

from knee_siglip.sample import lateral, lesions
from knee_siglip.sample.anatomy import Knee, build_bones
from knee_siglip.sample.canvas import COARSE, COLLIMATED_SHARE, Canvas, box_around, draw_pose, to_float
from knee_siglip.sample.findings import Labels, View

TILE = 1024
"""Side of the noise tiles; each picture takes its own random window from them."""

LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "left": [[(0, 0), (0, 10), (6, 10)]],
    "right": [[(0, 10), (0, 0), (5, 0), (6, 2.5), (5, 5), (0, 5)], [(2.5, 5), (6, 10)]],
}
CORTEX = 1.04
"""Attenuation of the cortical rim at a bone's very edge; 0.2 of it stays everywhere inside."""

MARKER_RATE = 0.25
COLLIMATED_RATE = 0.2


def draw_knee(
    rng: np.random.Generator, labels: Labels, size: int, view: View = "ap"
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one radiograph: uint8 (size, size) and its findings [{"finding": name, "box": [x0, y0, x1, y1]}].

    Of the same stream both views show the same joint space and angle of the leg.
    """
    knee, warp = (lateral.build_bones if view == "lateral" else build_bones)(rng, labels)
    pose = draw_pose(rng, labels.side, view)
    lesions.add(knee, warp, rng, labels, reach_mm=pose.reach_mm)
    canvas = Canvas(size, pose)
    path = _attenuation(canvas, knee, rng)
    _add_calcium(path, canvas, knee)
    if knee.metal:
        path += 4.0 * canvas.fill(knee.metal)
    image = _expose(path, canvas, rng)
    _add_marker(image, canvas, rng, labels.side)
    boxes = [(name, canvas.box(points)) for name, points in knee.findings]
    findings = [{"finding": name, "box": box} for name, box in boxes if _visible(box)]
    return np.rint(image).astype(np.uint8), findings


def _visible(box: list[float]) -> bool:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0) > 2e-4 and min(x1 - x0, y1 - y0) > 0.008


def _soft_tissue(canvas: Canvas, knee: Knee, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of skin, fat and muscle (elliptical cross-sections), and of fluid in the joint; coarse float32."""
    x, y = canvas.coarse_grid()
    width = rng.uniform(56, 72)
    flare = rng.uniform(0.08, 0.25)
    outer = width + flare * np.maximum(-y - 15, 0) + 0.05 * np.maximum(y - 30, 0) - 0.03 * np.abs(y)
    inner = outer - rng.uniform(5, 12)
    shift = rng.normal(0, 4)
    fat = np.sqrt(np.clip(1 - ((x - shift) / outer) ** 2, 0, 1))
    muscle = np.sqrt(np.clip(1 - ((x - shift) / inner) ** 2, 0, 1))
    path = rng.uniform(0.5, 1.2) * fat + rng.uniform(0.7, 1.6) * muscle
    path *= 1 + rng.uniform(-0.25, 0.25) * y / 100
    blotches = rng.standard_normal((7, 7), dtype=np.float32)
    blotches = np.asarray(Image.fromarray(blotches).resize(x.shape, Image.Resampling.BICUBIC))
    path *= 1 + 0.05 * blotches
    if knee.effusion:
        fluid = canvas.fill(knee.effusion, coarse=True)
        fat_stripe = ndimage.gaussian_filter(fluid, 2.2) * (1 - fluid)  # pushed outwards, darker than either side
        path += rng.uniform(0.45, 0.58) * ndimage.gaussian_filter(fluid, 1.1) - 0.3 * fat_stripe
    return path


def _attenuation(canvas: Canvas, knee: Knee, rng: np.random.Generator) -> np.ndarray:
    """Attenuation along the ray through everything but calcium and metal; float32 (H, W).

    Thickness is smooth and comes from the coarse grid; edges, rims and lines are drawn in full size.
    """
    soft = _soft_tissue(canvas, knee, rng)
    soft += _thickness(canvas, [knee.patella, *knee.patella_spurs], 14, rng.uniform(0.2, 0.42))
    # the beam's heel effect and the leg's wedge shape: a slope over the picture
    slope_x, slope_y = rng.normal(0, 0.25, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, len(soft), dtype=np.float32)
    soft += slope_x * ramp[None, :] + slope_y * ramp[:, None]
    thick = _thickness(canvas, [knee.femur, *knee.femur_spurs], 20, 0.95)
    thick += _thickness(canvas, [knee.tibia, *knee.tibia_spurs], 18, 0.95)
    thick += _thickness(canvas, [knee.fibula], 7, 0.35)
    path = _edges(canvas, knee, canvas.enlarge(thick))
    if knee.sclerosis:
        dense = canvas.strokes([(s.points, s.width_mm, s.strength) for s in knee.sclerosis], blur=canvas.scale * 2.0)
        path += 0.75 * dense * np.minimum(path, 0.6) / 0.6
    path *= 1 + np.float32(rng.uniform(0.02, 0.09)) * random_window(_trabeculae(), canvas.size, rng)
    if knee.cracks:
        path *= 1 - 0.62 * canvas.strokes([(c.points, c.width_mm, c.strength) for c in knee.cracks], blur=0.8)
    path += canvas.enlarge(soft)
    return path


def _edges(canvas: Canvas, knee: Knee, thick: np.ndarray) -> np.ndarray:
    """Sharp bones: cortical rims (0 deep inside, brightest at the edge) on `thick`, which is cut to the outlines.

    Femur and fibula never overlap and share one mask; the tibia has its own, so that overlaps add up. From the side the
    patella lies free, before the femur.
    """
    free = [knee.patella, *knee.patella_spurs] if knee.from_side else []
    proximal = canvas.shape([knee.femur, *knee.femur_spurs, knee.fibula, *free])
    distal = canvas.shape([knee.tibia, *knee.tibia_spurs])
    path = canvas.strokes([(line.points, line.width_mm, line.strength) for line in knee.lines])
    path *= np.float32(0.6)
    path += thick
    path *= to_float(ImageChops.lighter(proximal, distal))
    radius = 1.5 * canvas.scale
    for bones in (proximal, distal):
        left, top, right, bottom = box = box_around(bones, math.ceil(radius) + 1)
        mask = bones.crop(box)
        rim = np.float32(CORTEX) - np.float32(CORTEX - 0.2) * to_float(mask, radius)
        path[top:bottom, left:right] += to_float(mask) * rim
    return path


def _thickness(canvas: Canvas, outlines: list[np.ndarray], depth_mm: float, strength: float) -> np.ndarray:
    """A bone's coarse attenuation: rises from the edge like the thickness of a round rod, over `depth_mm`."""
    image = canvas.shape(outlines, coarse=True)
    left, top, right, bottom = box = box_around(image, 1)
    mask = np.pad(np.asarray(image.crop(box)), 1, mode="edge")  # a bone that the picture's edge cuts is thick there
    distance = ndimage.distance_transform_edt(mask)[1:-1, 1:-1] * (COARSE / canvas.scale)
    field = np.zeros((image.height, image.width), dtype=np.float32)
    rounded = np.sqrt(1 - (1 - np.minimum(distance / depth_mm, 1)) ** 2).astype(np.float32)
    field[top:bottom, left:right] = strength * rounded
    return field


def _add_calcium(path: np.ndarray, canvas: Canvas, knee: Knee) -> None:
    """In place: calcified menisci and specks, and loose bodies with their rim."""
    if len(knee.specks):
        path += 0.55 * canvas.discs(knee.specks)
        path += 0.34 * canvas.fill(knee.menisci, blur=1.2)
    if knee.loose_bodies:
        bodies = canvas.shape(knee.loose_bodies)
        path += to_float(bodies) * (0.55 + 0.9 * (1 - to_float(bodies, 1.3 * canvas.scale)))


def _expose(path: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Path -> grey 0-255 (bone white), float32: scatter veil, quantum noise, window, gamma, collimation, blur."""
    size = canvas.size
    coarse = np.ascontiguousarray(path[::8, ::8])
    share = np.float32(rng.uniform(0.0, 0.45))
    veil = -np.log(ndimage.gaussian_filter(np.exp(-coarse), 5) + 1e-4)
    path *= 1 - share
    path += np.asarray(Image.fromarray(share * veil).resize((size, size), Image.Resampling.BILINEAR))
    path += np.float32(rng.uniform(0.005, 0.04)) * random_window(_grain(), size, rng)
    low, high = np.percentile(coarse, [rng.uniform(0.5, 12), rng.uniform(93, 99.8)])
    low, high = low - rng.uniform(0, 0.5), high + rng.uniform(-0.1, 0.6)
    curve = np.linspace(0, 1, 1024) ** np.exp(rng.normal(-0.1, 0.35))
    dark, bright = rng.uniform(0, 60) * (rng.random() < 0.4), rng.uniform(190, 255)
    curve = np.rint(dark + (bright - dark) * curve).astype(np.uint8)
    path -= np.float32(low)
    path *= np.float32(1023 / (high - low))
    grey = curve.take(np.clip(path, 0, 1023, out=path).astype(np.uint16), mode="clip")  # the fastest mode
    blur = rng.uniform(0.4, 1.1)
    if rng.random() < COLLIMATED_RATE:
        grey = (grey * _collimator(canvas, rng)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.BoxBlur(blur)), dtype=np.float32)


def _collimator(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """1 inside the exposed rectangle, almost 0 outside; always leaves the middle."""
    left, top, right, bottom = rng.uniform(0.0, COLLIMATED_SHARE, 4)
    tilt = rng.normal(0, 0.012)
    corners = np.array(
        [(left, top + tilt), (1 - right, top - tilt), (1 - right + tilt, 1 - bottom), (left + tilt, 1 - bottom)]
    )
    local = (corners * canvas.size - canvas.offset) @ np.linalg.inv(canvas.matrix).T
    return 0.03 + 0.97 * canvas.fill([local], blur=2.0)


def _add_marker(image: np.ndarray, canvas: Canvas, rng: np.random.Generator, side: str) -> None:
    """Add a lead letter L or R in a random corner of some images, in place."""
    if rng.random() >= MARKER_RATE:
        return
    height = rng.uniform(0.045, 0.07)
    corner = rng.uniform(0.03, 0.07, 2)
    corner += np.array([0.84, 0.82]) * (rng.random(2) < 0.5)
    inverse = np.linalg.inv(canvas.matrix).T
    strokes = []
    for stroke in LETTERS[side]:
        pixels = (np.array(stroke) * height / 10 + corner) * canvas.size
        strokes.append(((pixels - canvas.offset) @ inverse, 0.012 * canvas.size / canvas.scale, 1.0))
    image += (250 - image) * canvas.strokes(strokes, blur=0.8)


def random_window(tile: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random (size, size) window of a tile, mirrored half of the time."""
    y, x = rng.integers(0, tile.shape[0] - size + 1, 2)
    window = tile[y : y + size, x : x + size]
    return window[:, ::-1] if rng.random() < 0.5 else window


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Quantum noise of a detector with slight cross-talk: unit variance, float32 (TILE, TILE)."""
    noise = np.random.default_rng(11).standard_normal((TILE, TILE), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.6)
    return noise / noise.std()


@lru_cache(maxsize=1)
def _trabeculae() -> np.ndarray:
    """Bony texture: fine struts drawn out along the shaft, coarser clouds below; unit variance, (TILE, TILE)."""
    rng = np.random.default_rng(12)
    fine = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE), dtype=np.float32), (5, 0.8))
    cross = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE), dtype=np.float32), (1, 3))
    cloud = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE), dtype=np.float32), 9)
    tile = fine / fine.std() + 0.4 * cross / cross.std() + 0.7 * cloud / cloud.std()
    return (tile / tile.std()).astype(np.float32)
