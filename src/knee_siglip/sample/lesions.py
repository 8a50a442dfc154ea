"""Findings other than osteoarthritis itself: alignment, effusion, calcification, loose body, fracture, implant."""

import numpy as np

from knee_siglip.sample.anatomy import SIGN, Knee, Line, Warp, smooth
from knee_siglip.sample.findings import Labels

CAP = np.array([
    (39, -27), (42, -14), (38, -3.5), (28, 0.6), (18, 0), (12, -5), (9, -14), (5, -19), (-5, -19), (-9, -14), (-12, -5),
    (-18, 0), (-28, 0.6), (-38, -3.5), (-42, -14), (-39, -27), (-31, -17), (-16, -22), (0, -26), (16, -22), (31, -17),
], dtype=float)  # fmt: skip
CAP_FROM_SIDE = np.array([
    (-38, -48), (-43, -38), (-44, -26), (-41, -14), (-33, -4.5), (-21, 0.4), (0, 0.6), (21, 0.4), (34, -4.5), (43, -14),
    (46, -25), (43, -35), (37, -33), (37, -20), (28, -9.5), (10, -8.5), (-10, -8.5), (-25, -13), (-33, -24),
    (-35, -46),
], dtype=float)  # fmt: skip
"""Profiles of the femoral cap from the front and from the side."""

JOINT = np.array([(-44, -24), (44, 22)], dtype=float)


def add(knee: Knee, warp: Warp, rng: np.random.Generator, labels: Labels, reach_mm: float) -> None:
    """Add everything `labels` names beside the osteoarthritis, within `reach_mm` where it could be cut off."""
    if labels.alignment != "normal":
        knee.findings.append((labels.alignment, warp.femur(JOINT)))
    if labels.effusion:
        _add_effusion(knee, warp, rng)
    if labels.special == "chondrocalcinosis":
        _add_chondrocalcinosis(knee, warp, rng)
    elif labels.special == "loose_body":
        _add_loose_body(knee, warp, rng, reach_mm)
    elif labels.special == "fracture" and labels.fracture_side:
        _add_fracture(knee, warp, rng, SIGN[labels.fracture_side])
    elif labels.special == "arthroplasty":
        _add_implant(knee, warp, rng)


def _add_effusion(knee: Knee, warp: Warp, rng: np.random.Generator) -> None:
    """The distended recesses: lenses of fluid beside both condyles, reaching up to the suprapatellar pouch.

    From the side behind the condyles and, in front, the pouch itself between femur and quadriceps tendon.
    """
    for s in (-1, 1):
        out = rng.uniform(11, 15)
        lens = [(40, -72), (46 + 0.5 * out, -55), (44 + out, -34), (43 + 0.8 * out, -14), (42, -1), (38.5, -12),
                (36, -48)]  # fmt: skip
        pouch = [(44, -40), (47 + out, -56), (38 + out, -72), (30 + 0.6 * out, -86), (26, -92), (27, -74), (34, -56)]
        shape = pouch if knee.from_side and s < 0 else lens
        knee.effusion.append(warp.femur(smooth(np.array(shape, dtype=float) * (s, 1), 4)))
        place = shape if shape is pouch else [(40, -66), (44 + out, -3)]
        knee.findings.append(("effusion", warp.femur(np.array(place) * (s, 1))))


def _add_chondrocalcinosis(knee: Knee, warp: Warp, rng: np.random.Generator) -> None:
    """Calcified menisci (wedges at the outer margins) and a fine, broken line of specks in the cartilage between."""
    for compartment, s in SIGN.items():
        gap = warp.gap[compartment]
        if gap < 2:
            continue
        wedge = np.array([(41, -gap + 0.4), (41.5, -0.5), (24, -0.45 * gap)]) * (s, 1)
        knee.menisci.append(warp.tibia(wedge))
        n = int(rng.integers(34, 46))
        x = s * rng.uniform(13, 41, n)
        y = -gap * rng.uniform(0.25, 0.7, n)
        radius = rng.uniform(0.35, 0.95, n)
        knee.specks = np.concatenate([knee.specks, np.column_stack([warp.tibia(np.column_stack([x, y])), radius])])
        knee.findings.append(("chondrocalcinosis", warp.tibia(np.array([(s * 13, -gap), (s * 42, 0.5)]))))


def _add_loose_body(knee: Knee, warp: Warp, rng: np.random.Generator, reach_mm: float) -> None:
    """An ossified body with a rim, in the notch or beside a condyle (from the side: before or behind); 8-11 mm."""
    places = np.array([(-52, -4), (54, -12)] if knee.from_side else [(0, -12), (0, -14), (-48, -10), (48, -12)])
    shown = len(places) if reach_mm > 57 else 2
    centre = places[rng.integers(shown)] + rng.normal(0, 0.8, 2)
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    radius = rng.uniform(4.2, 5.6) * (1 + rng.normal(0, 0.06, 8))
    body = centre + np.column_stack([1.2 * radius * np.cos(angle), radius * np.sin(angle)])
    knee.loose_bodies.append(warp.femur(smooth(body, 4)))
    knee.findings.append(("loose_body", knee.loose_bodies[-1]))


def _add_fracture(knee: Knee, warp: Warp, rng: np.random.Generator, s: int) -> None:
    """A split from the plateau to the outer cortex; the fragment's displacement is in the tibia's outline."""
    top, end = rng.uniform(15, 18), rng.uniform(36, 44)
    path = np.array([(top, -2.0), (top + 2, 8), (top + 6, 17), (29, 28), (34, end)], dtype=float)
    path[1:-1] += rng.normal(0, 0.9, (3, 2))
    points = warp.tibia(smooth(path * (s, 1), 4, closed=False))
    knee.cracks.append(Line(points, rng.uniform(2.2, 3.0), 1.0))
    branch = np.array([path[1], path[1] + (7, 3), path[1] + (14, 2)])
    knee.cracks.append(Line(warp.tibia(branch * (s, 1)), 1.2, 0.7))
    knee.findings.append(("fracture", np.concatenate([points, warp.tibia(np.array([(s * 40.0, 2.0)]))])))


def _add_implant(knee: Knee, warp: Warp, rng: np.random.Generator) -> None:
    """Total knee arthroplasty: femoral cap, tibial tray with keel, a lucent insert between them."""
    cap = CAP_FROM_SIDE if knee.from_side else CAP
    thick, keel = rng.uniform(3.5, 5.0), rng.uniform(30, 48)
    tray = [(-39, 3), (39, 3), (39, 3 + thick), (8, 5 + thick), (5.5, keel), (0, keel + 3), (-5.5, keel),
            (-8, 5 + thick), (-39, 3 + thick)]  # fmt: skip
    knee.metal.append(warp.femur(smooth(cap, 4)))
    knee.metal.append(warp.tibia(np.array(tray, dtype=float)))
    knee.findings += [("arthroplasty", points) for points in knee.metal]
