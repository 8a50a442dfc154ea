"""What a synthetic knee has: the labels everything else (anatomy, picture, impression) follows from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right"]
Compartment = Literal["medial", "lateral"]
Alignment = Literal["normal", "varus", "valgus"]
View = Literal["ap", "lateral"]
Special = Literal["chondrocalcinosis", "loose_body", "fracture", "arthroplasty"]

SIDES: tuple[Side, Side] = ("left", "right")

SPECIAL_RATES: dict[Special, float] = {
    "chondrocalcinosis": 0.08,
    "loose_body": 0.06,
    "fracture": 0.06,
    "arthroplasty": 0.06,
}
"""Share of knees with each rare finding; a knee has at most one of them."""

GRADE_RATES = {
    None: (0.17, 0.15, 0.22, 0.23, 0.23),
    "chondrocalcinosis": (0.25, 0.25, 0.25, 0.25, 0.0),
    "loose_body": (0.0, 0.0, 0.33, 0.34, 0.33),
    "fracture": (0.6, 0.0, 0.4, 0.0, 0.0),
}
"""Kellgren-Lawrence grade (0-4) given the rare finding: calcified cartilage needs cartilage, loose bodies need OA."""

EFFUSION_RATES = {None: 0.40, "chondrocalcinosis": 0.0, "loose_body": 1.0, "fracture": 1.0, "arthroplasty": 0.35}
MALALIGNED_RATE = 0.42
MEDIAL_RATE = 0.6
MEDIAL_FRACTURE_RATE = 0.35


@dataclass(frozen=True)
class Labels:
    """The reportable truth about one knee.

    `kl_grade` is None after arthroplasty (the joint that was graded is gone). `compartment` is the narrowed one from
    grade 1 on; `fracture_side` the plateau that is broken.
    """

    side: Side
    kl_grade: int | None
    compartment: Compartment | None
    alignment: Alignment
    effusion: bool
    special: Special | None
    fracture_side: Compartment | None = None


def draw_labels(rng: np.random.Generator, side: Side) -> Labels:
    """Draw one knee's labels. Uses the same number of random values whatever comes out."""
    u = rng.random(6)
    special = [*SPECIAL_RATES, None][np.searchsorted(np.cumsum(list(SPECIAL_RATES.values())), u[0], side="right")]
    effusion = bool(u[1] < EFFUSION_RATES[special])
    if special == "arthroplasty":
        return Labels(side, None, None, "normal", effusion, special)
    grade = int(np.searchsorted(np.cumsum(GRADE_RATES[special]), u[2], side="right").clip(0, 4))
    broken: Compartment | None = None
    if special == "fracture":
        broken = "medial" if u[5] < MEDIAL_FRACTURE_RATE else "lateral"
    compartment = _narrowed_compartment(grade, broken, u[3])
    alignment = "normal" if special else _alignment(grade, compartment, u[4])
    return Labels(side, grade, compartment, alignment, effusion, special, broken)


def _narrowed_compartment(grade: int, broken: Compartment | None, u: float) -> Compartment | None:
    """A broken plateau is displaced, which would hide a narrowing: the other compartment is the narrow one."""
    if grade == 0:
        return None
    if broken is not None:
        return "lateral" if broken == "medial" else "medial"
    return "medial" if u < MEDIAL_RATE else "lateral"


def _alignment(grade: int, compartment: Compartment | None, u: float) -> Alignment:
    """Medial osteoarthritis goes with varus, lateral with valgus; without osteoarthritis either is seen."""
    if u >= MALALIGNED_RATE:
        return "normal"
    if grade >= 2:
        return "varus" if compartment == "medial" else "valgus"
    return "varus" if u < MALALIGNED_RATE / 2 else "valgus"
