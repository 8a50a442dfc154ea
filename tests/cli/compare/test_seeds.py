"""Several trainings a side: does the interval hold the truth as often as it says, and do its parts add up?"""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from knee_siglip.cli.compare.seeds import Runs, seed_interval

PATIENTS, RESAMPLES = 100, 300
DRAWS = np.random.default_rng(0).multinomial(PATIENTS, np.full(PATIENTS, 1 / PATIENTS), size=RESAMPLES) / PATIENTS


def side(rng, runs, training, patients, errors):
    """Runs whose metric is a mean over patients, with a normal effect of the training, each patient, and both."""
    scores = rng.normal(0, training, (runs, 1)) + rng.normal(0, patients, PATIENTS)
    scores = scores + rng.normal(0, errors, (runs, PATIENTS))
    return Runs(scores.mean(axis=1), scores @ DRAWS.T)


@pytest.mark.parametrize(
    ("runs", "training", "patients", "errors"),
    [(3, 0.05, 0.2, 0.2), (3, 0.0, 0.2, 0.2), (2, 0.05, 0.2, 0.2), (5, 0.02, 0.0, 0.3)],
)
def test_the_interval_holds_the_truth_in_95_of_100_experiments(runs, training, patients, errors):
    rng, held, found = np.random.default_rng(1), 0, 0
    for _ in range(400):
        interval, p = seed_interval(*(side(rng, runs, training, patients, errors) for _ in range(2)))
        held += interval.low <= 0 <= interval.high
        found += p < 0.05
    assert 0.92 <= held / 400 <= 0.985  # standard error of a share: 0.011
    assert found == 400 - held


def test_without_patients_it_is_the_t_test():
    """Of fixed patients only training is left: Student's t-test for equal spreads."""
    a, b = np.array([0.1, 0.2, 0.4]), np.array([0.5, 0.6, 0.8])
    fixed = [Runs(values, np.repeat(values[:, None], 200_000, axis=1)) for values in (a, b)]
    interval, p = seed_interval(*fixed)
    expected = ttest_ind(b, a).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert p == pytest.approx(ttest_ind(b, a).pvalue, rel=0.03)


def test_runs_that_differ_by_patients_alone_add_nothing_to_what_patients_do():
    rng = np.random.default_rng(3)
    a, b = (side(rng, 40, 0.0, 0.0, 0.3) for _ in range(2))
    interval, _ = seed_interval(a, b)
    patients_alone = (b.resampled.mean(axis=0) - a.resampled.mean(axis=0)).std()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * patients_alone, rel=0.1)


def test_more_runs_narrow_the_interval_down_to_what_patients_leave():
    rng = np.random.default_rng(4)
    widths = []
    for runs in (2, 4, 16):
        drawn = [seed_interval(side(rng, runs, 0.1, 0.2, 0.2), side(rng, runs, 0.1, 0.2, 0.2))[0] for _ in range(50)]
        widths.append(np.mean([interval.high - interval.low for interval in drawn]))
    assert widths[0] > 2 * widths[1] > 2 * widths[2] > 0


def test_a_single_run_beside_several_counts_their_training_alone():
    several, single = Runs(np.array([0.2, 0.4]), np.full((2, 50), [[0.2], [0.4]])), Runs(np.ones(1), np.ones((1, 50)))
    assert single.error == single.training_share == 0
    interval, p = seed_interval(several, single)
    assert interval.low < 0.7 < interval.high
    assert 0 < p < 1


def test_no_spread_at_all_is_a_point():
    a, b = (Runs(np.full(2, value), np.full((2, 50), value)) for value in (0.5, 0.75))
    interval, p = seed_interval(a, b)
    assert (interval.low, interval.high, p) == (0.25, 0.25, 0.0)
    assert seed_interval(a, a)[1] == 1.0
