"""The knee's outlines in millimetres: bones, osteophytes, lines inside the bone, and what a finding changes in them.

Local coordinates: origin in the middle of the joint line, +x lateral, +y distal (towards the foot).
Condyles touch y = 0 at x = +-22; the plateau lies the joint space below them.
"""

from dataclasses import dataclass, field

import numpy as np

from knee_siglip.sample.findings import Compartment, Labels

SIGN: dict[Compartment, int] = {"medial": -1, "lateral": 1}

JOINT_SPACE_MM = (5.9, 5.0, 3.9, 2.3, 0.3)
"""Width of the affected compartment for KL 0-4; steps of about a millimetre against a spread of 0.15."""

OSTEOPHYTE_MM = (0.0, 1.9, 4.2, 6.0, 8.5)
"""Length of the affected compartment's osteophytes for KL 0-4; the other side has half."""

SCLEROSIS = (0.0, 0.0, 0.15, 0.6, 1.0)

FEMUR = np.array([
    (15, -220), (15.5, -115), (18, -88), (24, -68), (33, -52), (40, -40), (42.5, -30), (40.5, -22), (41.5, -13),
    (37.5, -4.5), (30, -0.6), (22, 0), (15, -3.5), (10, -9.5), (6.5, -16), (0, -20), (-6.5, -16), (-10, -9.5),
    (-15, -3.5), (-22, 0), (-31, -0.4), (-39, -4.5), (-43, -13), (-42, -22), (-45, -30), (-44.5, -39), (-37, -51),
    (-27, -67), (-19.5, -88), (-16, -115), (-15.5, -220),
], dtype=float)  # fmt: skip
NOTCH = slice(13, 18)

TIBIA = np.array([
    (-14, 220), (-14.5, 115), (-17, 78), (-22, 54), (-30, 34), (-37.5, 19), (-42, 8), (-42, 3), (-39, 0.2),
    (-31, 1.2), (-22, 1.0), (-15, -1.5), (-9.5, -6), (-5.5, -10.5), (-1.5, -7.5), (2.5, -7.2), (6, -9.4), (9.5, -4.8),
    (14.5, -1.2), (22, 0.2), (31, -0.2), (38.5, 0.6), (41, 4), (39.5, 11), (35, 24), (27, 43), (19.5, 66), (16, 95),
    (14.5, 130), (14, 220),
], dtype=float)  # fmt: skip
SPINES = slice(12, 18)

FIBULA = np.array([
    (33.5, 16), (37.5, 10.5), (42, 12), (48.5, 19), (50, 28), (46, 40), (42.5, 56), (41, 90), (41, 220), (33.5, 220),
    (34, 90), (34.5, 58), (32.5, 42), (30.5, 29), (31, 21),
], dtype=float)  # fmt: skip

PATELLA = np.array([
    (0, -58), (11, -56), (19, -48), (21.5, -38), (17, -26), (8, -17), (0, -14), (-8, -17), (-17, -26), (-21, -38),
    (-18, -49), (-10, -56),
], dtype=float)  # fmt: skip


@dataclass
class Line:
    """A line drawn inside a bone, bright or (a crack) dark. points: (P, 2) mm; strength 0-1."""

    points: np.ndarray
    width_mm: float
    strength: float


@dataclass
class Knee:
    """Outlines of one knee, (P, 2) mm each, and where its findings lie (name -> list of (P, 2) mm point clouds)."""

    femur: np.ndarray
    tibia: np.ndarray
    fibula: np.ndarray
    patella: np.ndarray
    femur_spurs: list[np.ndarray] = field(default_factory=list)
    tibia_spurs: list[np.ndarray] = field(default_factory=list)
    from_side: bool = False
    patella_spurs: list[np.ndarray] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    sclerosis: list[Line] = field(default_factory=list)
    specks: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    menisci: list[np.ndarray] = field(default_factory=list)
    loose_bodies: list[np.ndarray] = field(default_factory=list)
    cracks: list[Line] = field(default_factory=list)
    metal: list[np.ndarray] = field(default_factory=list)
    effusion: list[np.ndarray] = field(default_factory=list)
    findings: list[tuple[str, np.ndarray]] = field(default_factory=list)


def smooth(points: np.ndarray, samples: int = 6, closed: bool = True) -> np.ndarray:
    """Catmull-Rom spline through `points` (P, 2) -> (P * samples, 2)."""
    pad = np.concatenate([points[-1:], points, points[:2]]) if closed else points[[0, *range(len(points)), -1]]
    p0, p1, p2, p3 = pad[:-3, None], pad[1:-2, None], pad[2:-1, None], pad[3:, None]
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    curve = 0.5 * curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def below(points: np.ndarray, distance_mm: float) -> np.ndarray:
    """The same points (P, 2), `distance_mm` further towards the foot."""
    return points + np.array([0.0, distance_mm])


class Warp:
    """Maps the standard knee to this one: joint space, alignment, size and individual shape."""

    width = 1.0
    """Of the joint in this view, as a share of the frontal one's."""

    def __init__(self, rng: np.random.Generator, labels: Labels):
        grade = labels.kl_grade or 0
        narrow = JOINT_SPACE_MM[grade] + rng.normal(0, 0.13)
        wide = JOINT_SPACE_MM[0] + rng.normal(0, 0.2) + 0.12 * grade
        self.gap = {"medial": wide, "lateral": wide + rng.normal(0.2, 0.1)}
        if labels.compartment:
            self.gap[labels.compartment] = max(narrow, 0.1)
        self.scale = np.array([rng.normal(1, 0.035), rng.normal(1, 0.03)])
        self.bend = np.tan(np.deg2rad(_angle(rng, labels)) / 2)
        rng.normal(0, 0.02)  # unused; drawn so that the stream, and with it every picture, stays the same

    def femur(self, points: np.ndarray) -> np.ndarray:
        """Points (P, 2) mm of the standard femur, its shaft bent towards the midline (varus) or away from it (valgus).

        The bend begins 10 mm from the joint.
        """
        reach = np.maximum(np.abs(points[:, 1]) - 10, 0)
        x = points[:, 0] - self.bend * reach
        return np.column_stack([x, points[:, 1]]) * self.scale

    def tibia(self, points: np.ndarray) -> np.ndarray:
        """Points (P, 2) mm of the standard tibia or fibula, bent alike; adds the joint space, tilted between sides."""
        tilt = (self.gap["lateral"] - self.gap["medial"]) / 44
        y = points[:, 1] + (self.gap["lateral"] + self.gap["medial"]) / 2 + tilt * np.clip(points[:, 0], -45, 45)
        return self.femur(np.column_stack([points[:, 0], y]))

    def femoral_spur(self, s: int, n: float) -> np.ndarray:
        """Outline (P, 2) mm of an osteophyte of length `n` mm on the standard femur, at the side of sign `s`."""
        spur = np.array([(36, -3.5), (40 + 0.5 * n, -2.8), (41.5 + n, -4.0), (41.5 + 0.7 * n, -7), (40, -15)])
        return spur * (s, 1)


def _angle(rng: np.random.Generator, labels: Labels) -> float:
    """Varus angle of the two shafts in degrees (negative: valgus); 4 degrees of valgus are normal."""
    if labels.alignment == "varus":
        return rng.uniform(8, 14)
    if labels.alignment == "valgus":
        return rng.uniform(-23, -17)
    return float(np.clip(rng.normal(-4.5, 1.2), -7, -2))


def build_bones(rng: np.random.Generator, labels: Labels) -> tuple[Knee, Warp]:
    """Draw one knee's bones and osteoarthritis for `labels`; `lesions.add` adds the rest."""
    warp = Warp(rng, labels)
    grade = labels.kl_grade or 0
    femur = FEMUR + rng.normal(0, 0.45, FEMUR.shape)
    tibia = TIBIA + rng.normal(0, 0.4, TIBIA.shape)
    femur[[11, 19], 1] = 0.0  # the lowest points of the condyles define the joint space
    tibia[[10, 19], 1] = 0.4
    femur[NOTCH] += (rng.normal(0, 1.2), rng.normal(0, 2.0))
    tibia[SPINES, 1] *= rng.uniform(0.8, 1.1) + 0.05 * grade
    deform(femur, tibia, labels)
    patella = PATELLA * (rng.normal(1, 0.06), rng.normal(1, 0.06)) + (rng.normal(1, 3), rng.normal(0, 4))
    knee = Knee(
        femur=warp.femur(smooth(femur)),
        tibia=warp.tibia(smooth(tibia)),
        fibula=warp.tibia(smooth(FIBULA + rng.normal(0, 0.4, FIBULA.shape) + (rng.normal(0, 1.5), rng.normal(0, 2)))),
        patella=warp.femur(smooth(patella)),
    )
    add_osteoarthritis(knee, warp, rng, labels)
    _add_lines(knee, warp, rng, tibia)
    return knee, warp


def deform(femur: np.ndarray, tibia: np.ndarray, labels: Labels) -> None:
    """In place: flattened condyle and worn plateau at grade 4; the displaced fragment of a fracture."""
    if labels.kl_grade == 4 and labels.compartment:
        s = SIGN[labels.compartment]
        femur[(s * femur[:, 0] > 34.5) & (femur[:, 1] > -17.5), 1] += 2.0
        outer = (s * tibia[:, 0] > 29) & (tibia[:, 1] < 12)
        tibia[outer, 1] += 1.5
    if labels.fracture_side:
        s = SIGN[labels.fracture_side]
        fragment = (s * tibia[:, 0] > 17) & (tibia[:, 1] < 30)
        tibia[fragment] += (s * 2.5, 4.5)


def add_osteoarthritis(knee: Knee, warp: Warp, rng: np.random.Generator, labels: Labels) -> None:
    """Osteophytes at the four margins, subchondral sclerosis and the boxes of both and of the narrowed space."""
    grade = labels.kl_grade or 0
    for compartment, s in SIGN.items():
        is_narrow = compartment == labels.compartment
        length = (1.0 if is_narrow else 0.5) * OSTEOPHYTE_MM[grade] * rng.uniform(0.9, 1.1)
        if length > 0.4:
            _add_spurs(knee, warp, s, length, reported=grade >= 2 and is_narrow)
    if grade >= 2 and labels.compartment:
        s = SIGN[labels.compartment]
        knee.findings.append(("joint_space_narrowing", warp.tibia(np.array([(s * 10, 3.0), (s * 40, -7.0)]))))
        _add_sclerosis(knee, warp, s, SCLEROSIS[grade], reported=grade >= 3)


def _add_spurs(knee: Knee, warp: Warp, s: int, length: float, reported: bool) -> None:
    """One beak on the femoral and one on the tibial margin of side `s`."""
    n = length / warp.width
    tibial = np.array(
        [(38, 0.3), (41 + 0.5 * n, -0.4 - 0.12 * n), (41 + n, -0.2 - 0.3 * n), (41 + 0.8 * n, 2.5), (40, 8)]
    )
    knee.tibia_spurs.append(warp.tibia(smooth(tibial * (s, 1), 4)))
    knee.femur_spurs.append(warp.femur(smooth(warp.femoral_spur(s, length), 4)))
    if reported:
        knee.findings.append(("osteophytes", knee.tibia_spurs[-1]))
        knee.findings.append(("osteophytes", knee.femur_spurs[-1]))


def _add_sclerosis(knee: Knee, warp: Warp, s: int, strength: float, reported: bool) -> None:
    plateau = warp.tibia(np.array([(s * 12, 1.5), (s * 22, 3.0), (s * 38, 3.0)]))
    condyle = warp.femur(np.array([(s * 15, -4.0), (s * 24, -2.5), (s * 37, -6.0)]))
    knee.sclerosis += [Line(plateau, 5.5, strength), Line(condyle, 4.5, 0.7 * strength)]
    if reported:
        knee.findings.append(("subchondral_sclerosis", np.concatenate([below(plateau, 3), below(plateau, -3)])))


def _add_lines(knee: Knee, warp: Warp, rng: np.random.Generator, tibia: np.ndarray) -> None:
    """Lines of the normal knee: subchondral plates, the notch's walls, growth-plate scars, the plateau's far rim."""
    rim = rng.uniform(0.5, 3.5)
    for indices in (slice(8, 13), slice(17, 23)):
        top = smooth(tibia[indices], 4, closed=False)
        knee.lines.append(Line(warp.tibia(below(top, 0.9)), 2.0, 0.8))
        knee.lines.append(Line(warp.tibia(below(top, rim + 0.9)), 1.0, 0.35))
    for s, height in ((-1, rng.uniform(26, 36)), (1, rng.uniform(24, 34))):
        wall = np.array([(s * 14, -3), (s * 12, -12), (s * 11.5, -22), (s * 13.5, -height)])
        knee.lines.append(Line(warp.femur(smooth(wall, 4, closed=False)), 1.1, 0.38))
    roof = below(np.array([(-11, -20), (-4, -25), (4, -25), (11, -20)]), rng.uniform(-3, 2))
    knee.lines.append(Line(warp.femur(smooth(roof, 4, closed=False)), 1.0, 0.2))
    scar = np.array([(-34, 15), (-18, 18), (0, 15), (16, 18), (32, 15)]) + rng.normal(0, 1, (5, 2))
    knee.lines.append(Line(warp.tibia(smooth(scar, 4, closed=False)), 0.9, rng.uniform(0.05, 0.25)))
    scar = np.array([(-38, -30), (-20, -27), (0, -31), (20, -27), (36, -30)]) + rng.normal(0, 1, (5, 2))
    knee.lines.append(Line(warp.femur(smooth(scar, 4, closed=False)), 0.9, rng.uniform(0.05, 0.25)))
