"""The metrics of a training's rounds, the best round, and early stopping. A validation ends each round."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from knee_siglip.params.sections import BestMetric


@dataclass
class History:
    """One dict of dotted metrics per round; `best_round`, whose weights are kept, counts from 1, 0 means none yet.

    By an accuracy it is the last round that is not surely worse than the highest: accuracies of few images are noise,
    and the learning rate falls, so that later weights are better. By a loss it is the lowest. val_rows: how many images
    the accuracy is of; None: so many that any difference is one.
    """

    best_metric: BestMetric
    val_rows: int | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    best_round: int = 0
    top_round: int = 0  # of the highest score

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best round."""
        return self.rounds[self.best_round - 1]

    @property
    def judged(self) -> str:
        """Prefix of the metrics of the weights that are kept: `val`, or `val_ema` for their moving average."""
        return self.best_metric.partition(".")[0]

    def add(self, metrics: dict[str, float]) -> bool:
        """Add a round; returns whether its weights are the best so far. Of equal rounds the first is the best."""
        score = self._score(metrics)
        is_top = not self.top_round or score > self._score(self.rounds[self.top_round - 1])
        is_best = is_top or score[0] > self._least()
        self.rounds.append(metrics)
        if is_top:
            self.top_round = len(self.rounds)
        if is_best:
            self.best_round = len(self.rounds)
        return is_best

    def is_stale(self, patience: int | None) -> bool:
        """Whether the last `patience` rounds have all failed to raise the highest score."""
        return patience is not None and len(self.rounds) - self.top_round >= patience

    def _least(self) -> float:
        """Accuracy above which a round is not surely worse than the highest: its lower 95 % bound, if that is one."""
        top = self.rounds[self.top_round - 1][self.best_metric]
        if self.val_rows is None or self.best_metric.endswith(".loss") or not math.isfinite(top):
            return math.inf
        return top - 1.96 * math.sqrt(max(top * (1 - top), 0.0) / self.val_rows)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rounds, self.best_round, self.top_round = state["rounds"], state["best_round"], state["top_round"]

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Larger is better; the loss breaks ties between accuracies. A round that is not finite is the worst."""
        value, loss = metrics[self.best_metric], metrics[f"{self.judged}.loss"]
        if not (math.isfinite(value) and math.isfinite(loss)):
            return -math.inf, -math.inf
        return -loss if self.best_metric.endswith(".loss") else value, -loss
