"""The drawn picture: findings are visible where their boxes say."""

import numpy as np
import pytest

from knee_siglip.sample.findings import Labels
from knee_siglip.sample.radiograph import draw_knee

SEVERE = Labels("right", 4, "medial", "varus", True, None)
NORMAL = Labels("right", 0, None, "normal", False, None)


def _draw(labels: Labels, seed: int = 0, size: int = 512) -> tuple[np.ndarray, list[dict]]:
    return draw_knee(np.random.default_rng(seed), labels, size)


@pytest.mark.parametrize("size", [512, 640])
def test_picture_is_grey_and_of_the_size_asked_for(size: int) -> None:
    image, _ = _draw(NORMAL, size=size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_the_same_stream_draws_the_same_picture() -> None:
    assert np.array_equal(_draw(SEVERE, 3)[0], _draw(SEVERE, 3)[0])
    assert not np.array_equal(_draw(SEVERE, 3)[0], _draw(SEVERE, 4)[0])


def test_a_normal_knee_has_no_findings() -> None:
    assert _draw(NORMAL)[1] == []


def test_severe_osteoarthritis_has_every_sign_of_it() -> None:
    names = {finding["finding"] for finding in _draw(SEVERE)[1]}
    assert names >= {"joint_space_narrowing", "osteophytes", "subchondral_sclerosis", "varus", "effusion"}


@pytest.mark.parametrize(
    ("special", "grade"), [("chondrocalcinosis", 1), ("loose_body", 3), ("fracture", 0), ("arthroplasty", None)]
)
def test_rare_findings_have_boxes_inside_the_picture(special: str, grade: int | None) -> None:
    compartment, broken = ("medial" if grade else None), ("lateral" if special == "fracture" else None)
    labels = Labels("left", grade, compartment, "normal", special == "loose_body", special, broken)
    for seed in range(8):
        boxes = [finding["box"] for finding in _draw(labels, seed)[1] if finding["finding"] == special]
        assert boxes
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1


def test_metal_is_the_brightest_thing_in_the_picture() -> None:
    image, findings = _draw(Labels("left", None, None, "normal", False, "arthroplasty"), 1)
    tray = np.array(findings[-1]["box"]) * 512
    x0, y0, x1, y1 = tray.astype(int)
    assert np.percentile(image[y0:y1, x0:x1], 90) >= np.percentile(image, 95)
