"""p-values of resampled differences and Holm's adjustment."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from knee_siglip.metrics.bootstrap import mean_statistic, resample
from knee_siglip.metrics.intervals import percentile_interval
from knee_siglip.metrics.significance import bootstrap_p_value, holm_adjusted, normal_p_value


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        (np.arange(1, 100), 2 / 100),  # none on the other side: 2 * (1 + 0) / (1 + 99), never 0
        (-np.arange(1, 100), 2 / 100),
        (np.arange(-4, 95), 2 * (1 + 5) / 100),  # -4 ... 0
        (np.zeros(99), 1.0),  # two equal models
        (np.arange(-50, 50), 1.0),
        ([], 1.0),  # nothing shown
    ],
)
def test_p_values_by_hand(differences, p):
    assert bootstrap_p_value(np.asarray(differences, dtype=float)) == pytest.approx(p)


@pytest.mark.parametrize("shift", np.linspace(0, 0.3, 16))
def test_p_falls_below_5_percent_where_the_interval_leaves_zero(shift):
    values, patients = np.random.default_rng(0).normal(shift, 1, 160), np.arange(160) // 2
    p = bootstrap_p_value(resample([mean_statistic(values)], patients)[0])
    interval = percentile_interval(resample([mean_statistic(values)], patients)[0])
    assert (p < 0.05) == (interval.low > 0 or interval.high < 0)


def test_the_normal_p_value_is_the_t_tests_where_that_is_right():
    values = np.random.default_rng(3).normal(0.2, 1, 400)
    drawn = resample([mean_statistic(values)], np.arange(400))[0]
    found = normal_p_value(values.mean(), drawn)
    assert norm.isf(found / 2) == pytest.approx(ttest_1samp(values, 0).statistic, rel=0.05)


def test_the_normal_p_value_without_any_spread():
    assert normal_p_value(0.0, np.zeros(9)) == 1
    assert normal_p_value(0.5, np.full(9, 0.5)) == 0


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; never below the one before
    assert holm_adjusted([0.02, 0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm_adjusted([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm_adjusted([0.03]) == pytest.approx([0.03])
    assert holm_adjusted([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.3, 1, size=6)
        adjusted = holm_adjusted(p)
        rejected = set()
        for step, number in enumerate(np.argsort(p)):
            if p[number] > 0.05 / (6 - step):
                break
            rejected.add(int(number))
        assert {number for number in range(6) if adjusted[number] <= 0.05} == rejected
