"""May the probability of a zero-shot grade be believed, and what is gained by abstaining where it is low?"""

import math

import numpy as np
from scipy.special import softmax

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.bootstrap import mean_statistic
from knee_siglip.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from knee_siglip.metrics.selective import RiskCoverage, risk_coverage

FITTED_ON = "val"
COVERAGES = np.arange(1, 101) / 100
ANSWERED = (1.0, 0.9, 0.8, 0.7, 0.5)
"""Shares of val that a threshold is to answer."""


def measure_calibration(split: EmbeddedSplit, data: EmbeddedData) -> dict[str, float]:
    """calibration.{ece,brier} of the grade probabilities; {temperature,ece_scaled,brier_scaled} where one is fitted."""
    if not split.task.labels:
        return {}
    probabilities = split.grade_probabilities[split.graded]
    metrics = {
        "calibration.ece": expected_calibration_error(probabilities, split.grades),
        "calibration.brier": brier_score(probabilities, split.grades),
    }
    temperature = temperature_for(split, data)
    if temperature is None:
        return metrics
    scaled = scaled_probabilities(split, temperature)
    return metrics | {
        "calibration.temperature": temperature,
        "calibration.ece_scaled": expected_calibration_error(scaled, split.grades),
        "calibration.brier_scaled": brier_score(scaled, split.grades),
    }


def calibration_table(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, str | float]]:
    """The reliability diagram: a row per bin with `confidence`, `accuracy` and `n`, least confident first.

    `probabilities`: `raw`, and where a temperature is fitted also `scaled`.
    """
    if not split.task.labels:
        return []
    kinds = {"raw": split.grade_probabilities[split.graded]}
    temperature = temperature_for(split, data)
    if temperature is not None:
        kinds["scaled"] = scaled_probabilities(split, temperature)
    return [
        {
            "probabilities": kind,
            "bin": number,
            "confidence": found.confidence,
            "accuracy": found.accuracy,
            "n": found.rows,
        }
        for kind, probabilities in kinds.items()
        for number, found in enumerate(reliability_bins(probabilities, split.grades))
    ]


def temperature_for(split: EmbeddedSplit, data: EmbeddedData) -> float | None:
    """Fitted on the graded rows of val; None without any, and for val itself, which it would flatter."""
    if FITTED_ON not in data.splits or split.name == FITTED_ON:
        return None
    fitted_on = data.splits[FITTED_ON]
    temperature = fit_temperature(fitted_on.logit_scale * fitted_on.grade_scores[fitted_on.graded], fitted_on.grades)
    return temperature if math.isfinite(temperature) else None


def scaled_probabilities(split: EmbeddedSplit, temperature: float) -> np.ndarray:
    """(G, C) grade probabilities of the graded rows, their logits divided by the temperature."""
    return np.asarray(softmax(split.logit_scale * split.grade_scores[split.graded] / temperature, axis=1))


def measure_selective(split: EmbeddedSplit, _: EmbeddedData) -> dict[str, float]:
    """selective.{aurc,accuracy_at_80_percent} of the zero-shot grade."""
    if not split.task.labels:
        return {}
    curve = _curve(split)
    return {"selective.aurc": curve.aurc, "selective.accuracy_at_80_percent": curve.accuracy_at(0.8)}


def risk_coverage_table(split: EmbeddedSplit) -> list[dict[str, float]]:
    """The risk-coverage curve at each percent of coverage, as far as there are rows.

    `threshold`: answer where the probability of the predicted grade is at least this; `n`: rows that are answered then,
    but for ties at the threshold; `risk`: share of wrong grades among them.
    """
    if not split.task.labels:
        return []
    curve = _curve(split)
    kept = dict.fromkeys(curve.rows_at(coverage) for coverage in COVERAGES) if len(curve.risk) else {}
    return [
        {
            "coverage": float(curve.coverage[rows - 1]),
            "risk": float(curve.risk[rows - 1]),
            "threshold": float(curve.confidence[rows - 1]),
            "n": rows,
        }
        for rows in kept
    ]


def abstention_table(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, float | None]]:
    """What thresholds chosen on val bring on this split: a row for each share of val to be answered.

    `answered_on_val`; `threshold`: answer where the confidence is at least this; `coverage`: share of this split that
    is answered; `n`; `risk`: share of wrong grades among them, with `low` and `high` (None with too few patients).
    Empty for val itself and where it has no grades.
    """
    if FITTED_ON not in data.splits or split.name == FITTED_ON or not len(split.graded):
        return []
    on_val = data.splits[FITTED_ON]
    sure = np.sort(on_val.grade_probabilities[on_val.graded].max(axis=1))[::-1]
    confidence = split.grade_probabilities[split.graded].max(axis=1)
    wrong = (split.predicted[split.graded] != split.grades).astype(np.float64)
    rows: list[dict[str, float | None]] = []
    for share in ANSWERED if len(sure) else ():
        threshold = float(sure[math.ceil(share * len(sure)) - 1]) if share < 1 else 0.0
        answered = confidence >= threshold
        risk = mean_statistic(np.where(answered, wrong, np.nan))
        bounds = risk.interval(np.zeros(0), split.patients[split.graded])
        rows.append(
            {
                "answered_on_val": share,
                "threshold": threshold,
                "coverage": float(answered.mean()),
                "n": int(answered.sum()),
                "risk": float(wrong[answered].mean()) if answered.any() else None,
                "low": bounds.low if bounds else None,
                "high": bounds.high if bounds else None,
            }
        )
    return rows


def _curve(split: EmbeddedSplit) -> RiskCoverage:
    confidence = split.grade_probabilities[split.graded].max(axis=1)
    return risk_coverage(confidence, split.predicted[split.graded] == split.grades)
