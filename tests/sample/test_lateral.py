"""The knee from its outer side: the same findings as in the frontal view, where a lateral view shows them."""

import numpy as np
import pytest

from knee_siglip.sample import anatomy, lesions
from knee_siglip.sample.anatomy import Knee
from knee_siglip.sample.canvas import Canvas, draw_pose
from knee_siglip.sample.findings import Labels
from knee_siglip.sample.lateral import LateralWarp, build_bones
from knee_siglip.sample.radiograph import draw_knee


def _bones(labels: Labels, seed: int = 0) -> tuple[Knee, LateralWarp]:
    return build_bones(np.random.default_rng(seed), labels)


def _osteoarthritis(grade: int, compartment: str = "medial") -> Labels:
    return Labels("left", grade, compartment if grade else None, "normal", False, None)


@pytest.mark.parametrize("grade", [0, 2, 4])
def test_both_views_show_the_same_joint_space(grade: int) -> None:
    for seed in range(5):
        _, frontal = anatomy.build_bones(np.random.default_rng(seed), _osteoarthritis(grade))
        assert _bones(_osteoarthritis(grade), seed)[1].gap == frontal.gap


@pytest.mark.parametrize(("compartment", "sign"), [("medial", -1), ("lateral", 1)])
def test_joint_closes_in_front_in_medial_and_behind_in_lateral_osteoarthritis(compartment: str, sign: int) -> None:
    def plateau(knee: Knee, s: int) -> float:
        surface = knee.tibia[(np.abs(s * knee.tibia[:, 0] - 15.4) < 4) & (knee.tibia[:, 1] < 12)]
        return surface[:, 1].min()

    knee, _ = _bones(_osteoarthritis(4, compartment))
    assert plateau(knee, sign) < plateau(knee, -sign) - 3


def test_osteophytes_grow_with_the_grade_at_patella_and_behind() -> None:
    heights, depths = [], []
    for grade in range(5):
        knee, _ = _bones(_osteoarthritis(grade, "lateral"))
        heights.append(max((np.ptp(spur[:, 1]) for spur in knee.patella_spurs), default=0))
        bone = np.concatenate([knee.femur, *knee.femur_spurs])
        depths.append(bone[np.abs(bone[:, 1]) < 60, 0].max())
    for sizes in (heights, depths):
        assert sizes == sorted(sizes)
        assert sizes[4] > sizes[0] + 3


def test_patella_lies_in_front_and_fibula_behind_and_lower() -> None:
    for seed in range(20):
        knee, _ = _bones(_osteoarthritis(0), seed)
        near = knee.femur[np.abs(knee.femur[:, 1] + 30) < 20]
        assert knee.patella[:, 0].mean() < near[:, 0].min()
        assert knee.fibula[:, 0].mean() > knee.tibia[:, 0].mean()
        assert knee.fibula[:, 1].min() > knee.tibia[:, 1].min() + 3


@pytest.mark.parametrize(("side", "sign"), [("right", 1), ("left", -1)])
def test_a_right_knee_looks_to_the_right(side: str, sign: int) -> None:
    labels = Labels(side, 0, None, "normal", False, None)
    for seed in range(20):
        knee, _ = _bones(labels, seed)
        canvas = Canvas(512, draw_pose(np.random.default_rng(seed), side, "lateral"))
        patella, fibula = canvas.to_pixels(knee.patella)[:, 0].mean(), canvas.to_pixels(knee.fibula)[:, 0].mean()
        assert np.sign(patella - fibula) == sign


def test_varus_is_overstretched_and_valgus_bent() -> None:
    places = []
    for alignment in ("varus", "normal", "valgus"):
        knee, _ = _bones(Labels("left", 0, None, alignment, False, None))
        places.append(knee.femur[knee.femur[:, 1] < -100, 0].mean())
    assert places[0] < places[1] < places[2]


def test_effusion_fills_the_pouch_above_the_patella_and_the_recess_behind() -> None:
    labels = Labels("left", 0, None, "normal", True, None)
    knee, warp = _bones(labels)
    lesions.add(knee, warp, np.random.default_rng(0), labels, reach_mm=60)
    pouch, behind = knee.effusion
    assert behind[:, 0].max() > knee.femur[np.abs(knee.femur[:, 1] + 25) < 20, 0].max() + 2
    assert pouch[:, 1].mean() < knee.patella[:, 1].min()
    assert pouch[:, 0].mean() < knee.femur[np.abs(knee.femur[:, 1] + 65) < 10, 0].mean()


@pytest.mark.parametrize(
    "labels",
    [
        Labels("right", 4, "medial", "varus", True, None),
        Labels("left", 1, "medial", "normal", False, "chondrocalcinosis"),
        Labels("left", 3, "lateral", "normal", True, "loose_body"),
        Labels("right", 0, None, "normal", True, "fracture", "lateral"),
        Labels("left", None, None, "normal", False, "arthroplasty"),
    ],
)
def test_both_views_name_the_same_findings(labels: Labels) -> None:
    named = [
        {finding["finding"] for finding in draw_knee(np.random.default_rng(3), labels, 512, view)[1]}
        for view in ("ap", "lateral")
    ]
    assert named[0] == named[1] != set()


def test_a_normal_knee_has_no_findings() -> None:
    image, findings = draw_knee(np.random.default_rng(0), _osteoarthritis(0), 512, "lateral")
    assert findings == []
    assert (image.shape, image.dtype) == ((512, 512), np.uint8)
    assert image.std() > 10
