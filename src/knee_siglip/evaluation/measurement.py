"""Measure one split: metrics, the tables behind them, and pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from knee_siglip.evaluation.baselines import baseline_metrics, baselines_table, beats_baselines
from knee_siglip.evaluation.clinical.operating_points import measure_operating_points
from knee_siglip.evaluation.clinical.reviewers import (
    decision_curve_table,
    grade_calibration_table,
    measure_calibration_slope,
    measure_readers,
)
from knee_siglip.evaluation.confidence import (
    abstention_table,
    calibration_table,
    measure_calibration,
    measure_selective,
    risk_coverage_table,
)
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.findings import measure_findings
from knee_siglip.evaluation.grounding import grounding_report
from knee_siglip.evaluation.groups.slices import count_slices, slices_table
from knee_siglip.evaluation.groups.studies import studies_table, study_metrics, study_predictions
from knee_siglip.evaluation.groups.subgroups import count_subgroups, subgroups_table
from knee_siglip.evaluation.headline import headline_estimates, interval_metrics
from knee_siglip.evaluation.linear_probe import probe_metrics, probe_table
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.evaluation.robustness import robustness_report
from knee_siglip.evaluation.split_metrics import (
    Metrics,
    count_rows,
    measure_ceiling,
    measure_contrastive,
    measure_loss,
    measure_retrieval,
    measure_wordings,
    measure_zero_shot,
    prompts_table,
)

Row = Mapping[str, Any]

PROBES: tuple[Callable[[EmbeddedSplit, EmbeddedData], Metrics], ...] = (
    count_rows,
    measure_loss,
    measure_contrastive,
    measure_ceiling,
    measure_retrieval,
    measure_wordings,
    measure_zero_shot,
    measure_findings,
    measure_operating_points,
    measure_calibration,
    measure_selective,
    measure_calibration_slope,
    measure_readers,
)
"""Metrics that need no table. Add a measurement here; undefined values are left out."""


def measure(split: EmbeddedSplit, data: EmbeddedData) -> Metrics:
    """All metrics but the headline ones; what is not finite is left out, as JSON cannot hold it."""
    metrics: Metrics = {}
    for probe in PROBES:
        metrics |= probe(split, data)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def measure_headline(predictions: pd.DataFrame) -> Metrics:
    """The headline metrics of one split's predictions, with `<metric>_ci_low` and `<metric>_ci_high`.

    In place of an interval for which there are too few independent units stands their number, `<metric>_ci_units`.
    """
    metrics: Metrics = {}
    for name, estimate in headline_estimates(predictions).items():
        metrics[name] = estimate.value
        metrics |= interval_metrics(name, estimate.interval, estimate.units)
    return metrics


@dataclass(frozen=True)
class MeasuredSplit:
    """All that was measured on one split.

    metrics: by dotted name. predictions, studies: as in the parquet files of these names. tables: by name, the rows of
    tables/*.csv. overlays: (title, JPEG file) of the grounding maps. case_maps: as `case_map` gives them.
    """

    split: EmbeddedSplit
    metrics: Metrics
    predictions: pd.DataFrame
    studies: pd.DataFrame
    tables: dict[str, Sequence[Row]]
    overlays: list[tuple[str, bytes]]
    case_maps: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The split's."""
        return self.split.name


def measure_split(split: EmbeddedSplit, data: EmbeddedData, backbones: Path) -> MeasuredSplit:
    """Measure everything on one split. backbones: the encoders before the training, a baseline of their own.

    Raises:
        UserError: a column that params.yaml names is missing, or a cell that was needed cannot be read.
    """
    predictions, studies = predictions_of(split, data.params), study_predictions(split, data.params)
    grounding = grounding_report(split, data)
    robustness = robustness_report(split, data)
    tables: dict[str, Sequence[Row]] = {
        "baselines": baselines_table(split, data, backbones),
        "calibration": calibration_table(split, data),
        "calibration_grades": grade_calibration_table(split, data),
        "decision_curve": decision_curve_table(split, data),
        "risk_coverage": risk_coverage_table(split),
        "abstention": abstention_table(split, data),
        "probe": probe_table(split, data),
        "prompts": prompts_table(split),
        "subgroups": subgroups_table(predictions, data.params.subgroup_columns(split.task.labels.column)),
        "slices": slices_table(predictions),
        "studies": studies_table(split, predictions, studies),
        "robustness": robustness.table,
        "grounding": grounding.table,
        "grounding_findings": grounding.findings,
    }
    metrics = measure_headline(predictions) | measure(split, data)
    metrics |= probe_metrics(tables["probe"]) | grounding.metrics | robustness.metrics
    metrics |= study_metrics(tables["studies"])
    metrics |= (
        count_slices(tables["slices"]) | count_subgroups(tables["subgroups"]) | baseline_metrics(tables["baselines"])
    )
    metrics |= beats_baselines(metrics)
    return MeasuredSplit(split, metrics, predictions, studies, tables, grounding.overlays, grounding.cases)
