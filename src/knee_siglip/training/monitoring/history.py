"""The metrics of a training's rounds, the best round, and early stopping. A validation ends each round."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from knee_siglip.params.sections import BestMetric


@dataclass
class History:
    """One dict of dotted metrics per round; `best_round` counts from 1, 0 means none yet."""

    best_metric: BestMetric
    rounds: list[dict[str, float]] = field(default_factory=list)
    best_round: int = 0

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best round."""
        return self.rounds[self.best_round - 1]

    @property
    def judged(self) -> str:
        """Prefix of the metrics of the weights that are kept: `val`, or `val_ema` for their moving average."""
        return self.best_metric.partition(".")[0]

    def add(self, metrics: dict[str, float]) -> bool:
        """Add a round; returns whether it is the best so far. Of equal rounds the first is the best."""
        is_best = not self.best_round or self._score(metrics) > self._score(self.best)
        self.rounds.append(metrics)
        if is_best:
            self.best_round = len(self.rounds)
        return is_best

    def is_stale(self, patience: int | None) -> bool:
        """Whether the last `patience` rounds have all failed to be the best."""
        return patience is not None and len(self.rounds) - self.best_round >= patience

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rounds, self.best_round = state["rounds"], state["best_round"]

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Larger is better; the loss breaks ties between accuracies. A round that is not finite is the worst."""
        value, loss = metrics[self.best_metric], metrics[f"{self.judged}.loss"]
        if not (math.isfinite(value) and math.isfinite(loss)):
            return -math.inf, -math.inf
        return -loss if self.best_metric.endswith(".loss") else value, -loss
