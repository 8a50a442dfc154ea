"""What a synthetic knee may have: the rules behind its labels."""

import numpy as np

from knee_siglip.sample.dataset import iter_cases
from knee_siglip.sample.findings import SPECIAL_RATES, Labels, draw_labels

PATIENTS, SEED = 1000, 42


def _labels() -> list[Labels]:
    return [case.labels for case in iter_cases(PATIENTS, SEED)]


def test_every_grade_is_common_and_every_rare_finding_is_between_4_and_10_percent() -> None:
    labels = _labels()
    grades = np.bincount([knee.kl_grade for knee in labels if knee.kl_grade is not None], minlength=5) / len(labels)
    assert grades.min() > 0.1
    for special in SPECIAL_RATES:
        assert 0.04 <= np.mean([knee.special == special for knee in labels]) <= 0.10


def test_an_implant_has_no_grade_and_every_other_knee_has_one() -> None:
    assert all((knee.kl_grade is None) == (knee.special == "arthroplasty") for knee in _labels())


def test_varus_goes_with_medial_and_valgus_with_lateral_osteoarthritis() -> None:
    pairs = {(knee.compartment, knee.alignment) for knee in _labels() if (knee.kl_grade or 0) >= 2}
    assert ("medial", "valgus") not in pairs
    assert ("lateral", "varus") not in pairs


def test_the_broken_plateau_is_never_the_narrowed_one() -> None:
    broken = [knee for knee in _labels() if knee.special == "fracture"]
    assert broken
    assert all(knee.fracture_side != knee.compartment for knee in broken)


def test_labels_use_the_same_amount_of_randomness_whatever_comes_out() -> None:
    following = set()
    for seed in range(20):
        rng, reference = np.random.default_rng(seed), np.random.default_rng(seed)
        draw_labels(rng, "left")
        reference.random(6)
        following.add(rng.random() == reference.random())
    assert following == {True}
