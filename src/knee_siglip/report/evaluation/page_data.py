"""What the evaluation page is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.report.evaluation.wording import CHANCE, CHANCE_LEVELS, HEADLINE, at

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SplitResults:
    """What was measured on one split of N images.

    metrics: nested, as in metrics.json. predictions: (N rows) as in predictions.parquet. image_embeds, text_embeds:
    (N, D), L2-normalised. images: from (K,) row numbers to their (K, S, S) uint8 pixels, as the model sees them.
    tables: by name (`subgroups`, `robustness`, `probe`, `prompts`, `baselines`, `grounding`, `calibration`,
    `risk_coverage`), the rows of tables/*.csv. overlays: (title, file of an image) of the grounding maps.
    Any measurement may be absent: the page then says so.
    """

    name: str
    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    overlays: Sequence[tuple[str, bytes]] = ()

    def table(self, name: str) -> Sequence[Row]:
        """Empty where it was not measured."""
        return self.tables.get(name, ())

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of the headline metric `name`, where both bounds are known."""
        low, high = (at(self.metrics, f"{name}_ci_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Baseline to dotted metric to value; chance is known without a measurement where it is so by definition."""
        found: dict[str, dict[str, float]] = {CHANCE: {name: CHANCE_LEVELS[name] for name in CHANCE_LEVELS}}
        for row in self.table("baselines"):
            found.setdefault(str(row["baseline"]), {})[str(row["metric"])] = float(row["value"])
        for baseline, figures in (at(self.metrics, "baseline") or {}).items():
            known = {name: value for name in HEADLINE if (value := at(figures, name)) is not None}
            found[baseline] = found.get(baseline, {}) | known
        return found


@dataclass(frozen=True)
class ModelFacts:
    """What made the model and its data, for the model card.

    params: nested, as in params.yaml. revision: of the code, None outside git. data_hash: of the manifest. cache: what
    is known of the prepared images; checkpoint: of the model (parameters, epoch); counts: of the data. All nested.
    """

    params: Mapping[str, Any]
    revision: str | None = None
    data_hash: str = ""
    cache: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PageData:
    """splits: as evaluated, at least one. live: folder of the training's curves (DVCLive). gallery: queries shown."""

    splits: Sequence[SplitResults]
    facts: ModelFacts
    live: Path | None = None
    gallery: int = 6

    @property
    def shown(self) -> SplitResults:
        """The test split, or the first one where test was not evaluated."""
        return next((split for split in self.splits if split.name == "test"), self.splits[0])
