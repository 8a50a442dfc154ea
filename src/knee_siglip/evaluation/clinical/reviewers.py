"""What reviewers ask of the probabilities and the readers: calibration slope, net benefit, a second reader.

TRIPOD+AI (doi:10.1136/bmj-2023-078378) asks for calibration and clinical utility, CLAIM 2024 (doi:10.1148/ryai.240300)
for the agreement of readers.
"""

from functools import partial

import numpy as np
from scipy.special import expit, logit

from knee_siglip.evaluation.confidence import scaled_probabilities, temperature_for
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import interval_metrics
from knee_siglip.metrics.bootstrap import Statistic, interval_of, kappa_statistic, value_of

RESAMPLES = 500
CHANCES = np.arange(5, 100, 5) / 100
"""Probabilities from which on a reader would act."""

STEPS, SETTLED = 25, 1e-6
"""Of Newton's method, which converges within ten steps: how many it takes at most, and its last change of the slope."""

SECOND_READER = "_2"
"""End of the column in which a second reader's labels stand: `kl_grade_2`."""


def measure_calibration_slope(split: EmbeddedSplit, data: EmbeddedData) -> dict[str, float]:
    """calibration.<positive>.{slope,intercept}, with intervals: truth over the logit of the calibrated probability.

    A slope below 1 says that probabilities are too extreme, an intercept above 0 that they are too low: Van Calster et
    al. 2016, doi:10.1016/j.jclinepi.2015.12.005. None where one answer is missing or no finite line fits.
    """
    found, asked = _positive(split, data), split.task.positive
    if found is None or asked is None or found[1].all() or not found[1].any():
        return {}
    score, truth = logit(np.clip(found[0], 1e-6, 1 - 1e-6)), found[1]
    patients = split.patients[split.graded]
    metrics: dict[str, float] = {}
    for place, name in enumerate(("intercept", "slope")):
        statistic = Statistic(partial(_coefficient, place, score, truth), truth.astype(np.int64))
        key, value = f"calibration.{asked.name}.{name}", value_of(statistic, len(truth))
        if np.isfinite(value):
            interval = interval_of(statistic, patients, RESAMPLES)
            metrics |= {key: value} | interval_metrics(key, interval, statistic.units(patients))
    return metrics


def decision_curve_table(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, float]]:
    """Net benefit of acting from a `threshold` of the calibrated probability on: `model`, `all`, `n`.

    True positives less false ones times the odds of the threshold, a share of all images; acting on nobody has 0.
    Source: Vickers & Elkin 2006, doi:10.1177/0272989X06295361.
    """
    found = _positive(split, data)
    if found is None or not len(found[1]):
        return []
    score, truth = found
    return [
        {
            "threshold": float(chance),
            "model": _net_benefit(score >= chance, truth, chance),
            "all": _net_benefit(np.ones(len(truth), dtype=bool), truth, chance),
            "n": len(truth),
        }
        for chance in CHANCES
    ]


def grade_calibration_table(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, float | str]]:
    """Of each grade its mean calibrated `probability` over the n graded images, and the `share` that has it."""
    if not len(split.graded):
        return []
    probabilities = _calibrated(split, data)
    return [
        {
            "grade": label,
            "probability": float(probabilities[:, place].mean()),
            "share": float((split.grades == place).mean()),
            "n": len(split.grades),
        }
        for place, label in enumerate(split.task.labels.values)
    ]


def measure_readers(split: EmbeddedSplit, _: EmbeddedData) -> dict[str, float]:
    """readers.{between,model_to_second}.quadratic_weighted_kappa with intervals, and readers.n.

    Where the column of a second reader is there, over images that both graded: what the model may be held against.
    """
    labels = split.task.labels
    column = f"{labels.column}{SECOND_READER}" if labels else ""
    if not labels or column not in split.rows:
        return {}
    second = np.array(labels.positions(split.rows[column]), dtype=np.int64)[split.graded]
    both = second >= 0
    patients = split.patients[split.graded][both]
    pairs = {"between": split.grades[both], "model_to_second": split.predicted[split.graded][both]}
    metrics: dict[str, float] = {"readers.n": int(both.sum())}
    for name, grades in pairs.items():
        statistic, key = kappa_statistic(second[both], grades), f"readers.{name}.quadratic_weighted_kappa"
        interval = interval_of(statistic, patients)
        metrics |= {key: value_of(statistic, int(both.sum()))}
        metrics |= interval_metrics(key, interval, statistic.units(patients))
    return metrics


def _calibrated(split: EmbeddedSplit, data: EmbeddedData) -> np.ndarray:
    """(G, C) probabilities, with the temperature of val where there is one."""
    temperature = temperature_for(split, data)
    return split.grade_probabilities[split.graded] if temperature is None else scaled_probabilities(split, temperature)


def _positive(split: EmbeddedSplit, data: EmbeddedData) -> tuple[np.ndarray, np.ndarray] | None:
    """(G,) calibrated probability and (G,) truth of the task's positive grades; None where it has none."""
    asked = split.task.positive
    if asked is None or not split.task.labels:
        return None
    return _calibrated(split, data)[:, asked.lowest :].sum(axis=1), split.grades >= asked.lowest


def _net_benefit(acted: np.ndarray, truth: np.ndarray, chance: float) -> float:
    return float((acted & truth).mean() - (acted & ~truth).mean() * chance / (1 - chance))


def _coefficient(place: int, score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) intercept (place 0) or slope (1) of the logistic regression of truth (N,) on score (N,); weights: (R, N).

    Newton's method; NaN where it does not settle, as where a score parts the answers without a mistake.
    """
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    change = np.full(len(weights), np.inf)
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            chance = expit(intercept[:, None] + slope[:, None] * score)
            pull, curve = weights * (truth - chance), weights * chance * (1 - chance)
            gradient, along = pull.sum(axis=1), pull @ score
            a, b, c = curve.sum(axis=1), curve @ score, curve @ score**2
            intercept = intercept + (c * gradient - b * along) / (a * c - b * b)
            change = (a * along - b * gradient) / (a * c - b * b)
            slope = slope + change
    settled = np.isfinite(intercept) & (np.abs(change) < SETTLED)
    return np.where(settled, (intercept, slope)[place], np.nan)
