"""The outlines in millimetres: what a finding changes in them."""

import numpy as np
import pytest

from knee_siglip.sample import lesions
from knee_siglip.sample.anatomy import JOINT_SPACE_MM, build_bones, smooth
from knee_siglip.sample.canvas import Canvas, Pose, draw_pose
from knee_siglip.sample.findings import Labels


def _bones(labels: Labels, seed: int = 0):
    return build_bones(np.random.default_rng(seed), labels)


@pytest.mark.parametrize("compartment", ["medial", "lateral"])
@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_joint_space_of_the_affected_compartment_follows_the_grade(grade: int, compartment: str) -> None:
    for seed in range(20):
        _, warp = _bones(Labels("left", grade, compartment, "normal", False, None), seed)
        assert abs(warp.gap[compartment] - JOINT_SPACE_MM[grade]) < 0.5
        assert warp.gap["medial" if compartment == "lateral" else "lateral"] > 5


def test_osteophytes_grow_with_the_grade() -> None:
    widths = []
    for grade in range(5):
        knee, _ = _bones(Labels("left", grade, "medial" if grade else None, "normal", False, None))
        tips = np.concatenate([knee.tibia, *knee.tibia_spurs])
        widths.append(-tips[:, 0].min())
    assert widths == sorted(widths)
    assert widths[4] > widths[0] + 5


def test_varus_turns_both_shafts_towards_the_midline() -> None:
    shaft = {}
    for alignment in ("varus", "normal", "valgus"):
        knee, _ = _bones(Labels("left", 0, None, alignment, False, None))
        far = np.abs(knee.tibia[:, 1]) > 100
        shaft[alignment] = knee.tibia[far, 0].mean()
    assert shaft["varus"] < shaft["normal"] < shaft["valgus"]


def test_chondrocalcinosis_spares_a_joint_space_that_is_gone() -> None:
    labels = Labels("left", 3, "medial", "normal", False, "chondrocalcinosis")
    knee, warp = _bones(labels)
    lesions.add(knee, warp, np.random.default_rng(0), labels, reach_mm=60)
    names = [name for name, _ in knee.findings]
    assert names.count("chondrocalcinosis") == (warp.gap["medial"] >= 2) + 1


def test_loose_body_stays_where_the_picture_reaches() -> None:
    labels = Labels("left", 3, "medial", "normal", True, "loose_body")
    for seed in range(20):
        knee, warp = _bones(labels, seed)
        lesions.add(knee, warp, np.random.default_rng(seed), labels, reach_mm=45)
        assert np.abs(knee.loose_bodies[0][:, 0]).max() < 20


@pytest.mark.parametrize(("side", "sign"), [("right", -1), ("left", 1)])
def test_fibula_lies_on_the_lateral_side(side: str, sign: int) -> None:
    """On an AP view a right knee has its lateral side on the picture's left."""
    for seed in range(20):
        knee, _ = _bones(Labels(side, 0, None, "normal", False, None), seed)
        canvas = Canvas(512, draw_pose(np.random.default_rng(seed), side))
        fibula, tibia = canvas.to_pixels(knee.fibula)[:, 0].mean(), canvas.to_pixels(knee.tibia)[:, 0].mean()
        assert np.sign(fibula - tibia) == sign


def test_pose_keeps_the_joint_in_the_picture() -> None:
    for seed in range(200):
        canvas = Canvas(512, draw_pose(np.random.default_rng(seed), "left"))
        joint = canvas.to_pixels(np.array([(-25.0, 0.0), (25.0, 0.0)]))
        assert joint.min() > 0.06 * 512
        assert joint.max() < 0.94 * 512


def test_boxes_are_normalised_and_clipped() -> None:
    canvas = Canvas(512, Pose(100, 0.0, (0.0, 0.0), 1))
    assert canvas.box(np.array([(-500.0, -25.0), (25.0, 0.0)])) == [0.0, 0.25, 0.75, 0.5]


def test_smooth_goes_through_its_points() -> None:
    points = np.array([(0.0, 0.0), (10, 0), (10, 10), (0, 10)])
    np.testing.assert_allclose(smooth(points, 5)[::5], points, atol=1e-9)
