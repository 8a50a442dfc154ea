"""The headline metrics: what people compare experiments by, few enough for one screen."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from knee_siglip.core.nesting import flatten
from knee_siglip.tables.manifest import EXTERNAL
from knee_siglip.task.task import Task

Metrics = Mapping[str, Any]

OF_EXTERNAL = ("quadratic_weighted_kappa", "contrastive_accuracy")
"""Shown of a second test set too, as `external_<name>`."""


def evaluated(task: Task) -> dict[str, str]:
    """In the order of the file, with the name in the evaluation's metrics; those without one are computed."""
    grading, asked = task.labels.metrics, task.positive
    return {
        "quadratic_weighted_kappa": f"{grading}.quadratic_weighted_kappa",
        "quadratic_weighted_kappa_ci_low": f"{grading}.quadratic_weighted_kappa_ci_low",
        "contrastive_accuracy": "contrastive_accuracy",
        "image_to_text_recall_at_1": "retrieval.image_to_text.recall_at_1",
        "text_to_image_recall_at_1": "retrieval.text_to_image.recall_at_1",
        "grade_accuracy": f"{grading}.accuracy",
        "balanced_accuracy": f"{grading}.balanced_accuracy",
        "worst_grade_recall": "",
        "grades_predicted": f"{grading}.grades_predicted",
        **({f"{asked.name}_auroc": f"{grading}.{asked.name}.auroc"} if asked else {}),
        "findings_auroc_mean": "",
        "probe_kappa": "linear_probe.share_100.quadratic_weighted_kappa",
        "ece_scaled": "calibration.ece_scaled",
        "worst_disturbed_kappa": "robustness.worst_quadratic_weighted_kappa",
        "beats_baselines": "verdict.beats_baselines",
    }


def headline_metrics(evaluation: Metrics, training: Metrics, validation: Metrics, task: Task) -> dict[str, float]:
    """Pick the headline metrics from the nested metrics of three stages; what was not measured is left out.

    The evaluation's are those of the test split, or of the first one where test was not evaluated. `val_loss` is that
    of the evaluated epoch, `best_epoch`.
    """
    measured = flatten(dict(evaluation.get("test") or next(iter(evaluation.values()), {})))
    areas = _values(measured, "zero_shot_findings.", ".auroc")
    computed = {
        "worst_grade_recall": min(_values(measured, f"{task.labels.metrics}.grade_", ".recall"), default=None),
        "findings_auroc_mean": fmean(areas) if areas else None,
    }
    trained = flatten(dict(training))
    values = {
        **{name: computed.get(name, measured.get(source)) for name, source in evaluated(task).items()},
        "val_loss": trained.get("best.val_loss"),
        "best_epoch": trained.get("best_epoch"),
        "validation_errors": validation.get("errors"),
    }
    external = flatten(dict(evaluation.get(EXTERNAL, {})))
    values |= {f"external_{name}": external.get(evaluated(task)[name]) for name in OF_EXTERNAL}
    return {name: value for name, value in values.items() if value is not None}


def _values(metrics: Metrics, start: str, end: str) -> list[float]:
    return [value for name, value in metrics.items() if name.startswith(start) and name.endswith(end)]
