"""The metrics of a run's epochs, the best epoch, and early stopping."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from knee_siglip.params.sections import BestMetric


@dataclass
class History:
    """One dict of dotted metrics per epoch; `best_epoch` counts from 1, 0 means none yet."""

    best_metric: BestMetric
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.epochs[self.best_epoch - 1]

    def add(self, metrics: dict[str, float]) -> bool:
        """Add an epoch; returns whether it is the best so far. Of equal epochs the first is the best."""
        is_best = not self.best_epoch or self._score(metrics) > self._score(self.best)
        self.epochs.append(metrics)
        if is_best:
            self.best_epoch = len(self.epochs)
        return is_best

    def is_stale(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs have all failed to be the best."""
        return patience is not None and len(self.epochs) - self.best_epoch >= patience

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epochs, self.best_epoch = state["epochs"], state["best_epoch"]

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Larger is better; the loss breaks ties between accuracies. An epoch that is not finite is the worst."""
        prefix, _, name = self.best_metric.partition(".")
        value, loss = metrics[self.best_metric], metrics[f"{prefix}.loss"]
        if not (math.isfinite(value) and math.isfinite(loss)):
            return -math.inf, -math.inf
        return -loss if name == "loss" else value, -loss
