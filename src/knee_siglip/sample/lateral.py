"""The same knee from its outer side, standing: patella in front, fibula behind, both condyles on one another.

Local coordinates: +x to the back, +y distal, in units of the frontal knee: its margins lie at x = +-41 too, since all x
are scaled by `DEPTH` (a knee is less deep than wide). So what is drawn at a frontal knee's margins serves here as well:
the lateral compartment, whose osteoarthritis wears the plateau behind, at +x beside the fibula, the medial one, which
is worn in front (White, Ludkowski and Goodfellow 1991), at -x. A varus leg is overstretched, a valgus one bent.
"""

import numpy as np

from knee_siglip.sample.anatomy import OSTEOPHYTE_MM, Knee, Line, Warp, add_osteoarthritis, below, deform, smooth
from knee_siglip.sample.findings import Labels

DEPTH = 0.7
"""Depth of a knee's joint surfaces as a share of their width."""

FEMUR = np.array([
    (-16, -220), (-16, -115), (-17, -80), (-20, -62), (-25, -50), (-29.5, -39), (-30.5, -28), (-29.5, -14), (-25, -3.8),
    (-15.4, 0), (-4, 0.3), (6, 0.3), (15.4, 0), (25.5, -3.5), (31, -13), (33, -25), (31, -36), (24, -43), (17, -48),
    (13, -58), (12, -80), (13, -115), (13, -220),
]) / (DEPTH, 1)  # fmt: skip

CONDYLES = slice(9, 13)

TIBIA = np.array([
    (13, 220), (13, 130), (14, 95), (16.5, 66), (21, 40), (26, 24), (29, 13), (29.5, 6), (27, 1.2),
    (15.4, 0.4), (9, 0.6), (5, -4), (0, -2.5), (-4, -4.5), (-9, 0.6), (-15.4, 0.4), (-27, 0.6), (-29.5, 4), (-28, 12),
    (-24, 22), (-23, 30), (-24, 37), (-20.5, 47), (-17, 62), (-14, 92), (-13, 130), (-13, 220),
]) / (DEPTH, 1)  # fmt: skip

PLATEAU, EMINENCE = (9, 15), slice(11, 14)

FIBULA = np.array([
    (23, 15), (29, 9), (34, 12), (37.5, 20), (37, 30), (33, 42), (30.5, 58), (29, 90), (29, 220), (20.5, 220),
    (20.5, 90), (21, 58), (21, 42), (20.5, 30), (20.5, 22),
]) / (DEPTH, 1)  # fmt: skip

PATELLA = np.array([
    (-36, -46), (-35.3, -37), (-36, -28), (-39, -19), (-43.5, -12), (-48.5, -16), (-52.5, -25), (-54, -36), (-52, -46),
    (-47, -53), (-40, -52),
]) / (DEPTH, 1)  # fmt: skip


class LateralWarp(Warp):
    """Drawn from the same stream as the frontal `Warp`, and so the same joint space, size and angle of the leg."""

    width = DEPTH

    def __init__(self, rng: np.random.Generator, labels: Labels):
        super().__init__(rng, labels)
        self.scale = self.scale * (DEPTH, 1)
        self.bend /= DEPTH  # in millimetres the same

    def femoral_spur(self, s: int, n: float) -> np.ndarray:
        """At the upper edge of the trochlea (s = -1), and at the upper edge of the condyles behind."""
        front, front_tip = [(-25, -52), (-28, -48), (-29.5, -47), (-31, -41), (-29, -34)], (-0.8, -0.6)
        back, back_tip = [(23, -40), (28, -43), (31, -42), (32.5, -36), (31, -28)], (1.0, -0.6)
        outline, tip = (back, back_tip) if s > 0 else (front, front_tip)
        growth = np.array([0, 0.6, 1, 0.5, 0])[:, None] * n
        return (np.array(outline) + growth * tip) / (DEPTH, 1)


def build_bones(rng: np.random.Generator, labels: Labels) -> tuple[Knee, LateralWarp]:
    """Draw one knee's bones and osteoarthritis for `labels`; `lesions.add` adds the rest."""
    warp = LateralWarp(rng, labels)
    femur = FEMUR + rng.normal(0, 0.45, FEMUR.shape)
    tibia = TIBIA + rng.normal(0, 0.4, TIBIA.shape)
    femur[CONDYLES, 1] = 0.0  # the lowest points define the joint space
    tibia[PLATEAU, 1] = 0.4
    tibia[EMINENCE, 1] *= rng.uniform(0.5, 0.9)
    deform(femur, tibia, labels)
    fibula = FIBULA + rng.normal(0, 0.4, FIBULA.shape) + (rng.normal(0, 1.5), rng.normal(0, 2))
    patella = PATELLA + rng.normal(0, 0.5, PATELLA.shape) + (0, rng.normal(0, 3))
    knee = Knee(
        femur=warp.femur(smooth(femur)),
        tibia=warp.tibia(smooth(tibia)),
        fibula=warp.tibia(smooth(fibula)),
        patella=warp.femur(smooth(patella)),
        from_side=True,
    )
    add_osteoarthritis(knee, warp, rng, labels)
    _add_patellar_spurs(knee, warp, patella, OSTEOPHYTE_MM[labels.kl_grade or 0] * rng.uniform(0.6, 0.8))
    _add_lines(knee, warp, rng, femur, tibia)
    return knee, warp


def _add_patellar_spurs(knee: Knee, warp: Warp, patella: np.ndarray, length: float) -> None:
    """A beak at the upper and at the lower pole, from the surface that faces the femur."""
    n = length
    for pole, down in ((patella[0], -1), (patella[3], 1)):
        spur = np.array([(-1, -7), (1.5 + 0.3 * n, 0.6 * n), (-0.5, n), (-4, 2)]) * (1 / DEPTH, down) + pole
        if n > 0.8:
            knee.patella_spurs.append(warp.femur(smooth(spur, 4)))


def _add_lines(knee: Knee, warp: Warp, rng: np.random.Generator, femur: np.ndarray, tibia: np.ndarray) -> None:
    """Subchondral plate, the other condyle's contour, the notch's roof (Blumensaat's line) and growth-plate scars."""
    top = smooth(tibia[8:17], 4, closed=False)
    knee.lines.append(Line(warp.tibia(below(top, 0.9)), 2.0, 0.8))
    knee.lines.append(Line(warp.tibia(below(top, rng.uniform(2.5, 4.5))), 1.0, 0.35))
    smaller = femur[6:18] * (rng.uniform(0.86, 0.93), 0.93) + (-2.0, -1.5)
    knee.lines.append(Line(warp.femur(smooth(smaller, 4, closed=False)), 1.1, 0.4))
    roof = np.array([(13, -40), (5, -30), (-5, -18), (-9, -13)]) / (DEPTH, 1) + rng.normal(0, 0.8, (4, 2))
    knee.lines.append(Line(warp.femur(smooth(roof, 4, closed=False)), 1.2, 0.4))
    for place, height in ((warp.tibia, 16), (warp.femur, -44)):
        scar = below(np.array([(-30, 2), (-10, 0), (10, 1), (28, -2)]), height) + rng.normal(0, 1, (4, 2))
        knee.lines.append(Line(place(smooth(scar, 4, closed=False)), 0.9, rng.uniform(0.05, 0.25)))
