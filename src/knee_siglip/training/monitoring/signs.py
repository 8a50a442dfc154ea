"""Signs that a training goes wrong, looked for after every validation, each with what to try.

Every claim is computed from the curves and the data: what the loss of a model without information would be, how many
texts the validation images are nearest to, where the validation loss was lowest.
"""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from knee_siglip.metrics.matching.retrieval import shuffled_batches
from knee_siglip.pairs.batches import PairDataset, epoch_order, split_groups
from knee_siglip.params.sections import TrainParams
from knee_siglip.training.monitoring.history import History
from knee_siglip.training.monitoring.val_metrics import constant_loss
from knee_siglip.training.schedule import Budget

logger = logging.getLogger(__name__)

COLLAPSED = 0.95
"""Share of the validation images that are nearest to one text."""

ONE_TEXT = 0.8
"""Share of one text in the validation split above which nearly one answer for all is right."""

NOTHING_LEARNED = 0.98
"""Loss, as a share of that of a model without information, above which nothing was learned."""

RISEN = 1.1
"""Validation loss, as a multiple of its lowest, that counts as worse."""

ROUNDS_WORSE = 3
"""In so many rounds on end: while the learning rate is high, single ones are worse by chance."""

FEW_TRAIN_ROWS = 250
"""Training images below which seeds differ widely and few grades are told apart (`benchmarks/data_sizes.py`)."""

FEW_VAL_ROWS = 64
"""Validation images of one full batch of the contrastive accuracy, by which the best round is chosen."""

GROUPS_JUDGED = 50
"""Training batches, at most, whose constant loss is computed."""


@dataclass(frozen=True)
class Sign:
    """What was noticed, in a sentence, and what to try. error: the model is of no use; warning: it may be worse."""

    name: Literal["collapse", "no_learning", "worse", "few_rows"]
    tone: Literal["error", "warning"]
    sentence: str
    advice: str


@dataclass
class Monitor:
    """Looks for signs after each round, and warns of each new one.

    train_constant, val_constant: loss of a model without any information. common_text: largest share of one text among
    the validation pairs.
    """

    budget: Budget
    train_rows: int
    val_rows: int
    train_constant: float
    val_constant: float
    common_text: float
    warned: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, train_set: PairDataset, val_set: PairDataset, params: TrainParams, budget: Budget, seed: int
    ) -> "Monitor":
        """Of a training on these pairs."""
        size = params.batch_size * params.gradient_accumulation_steps
        groups = list(split_groups(epoch_order(len(train_set), seed, 0), size))[:GROUPS_JUDGED]
        positive_ids = train_set.match_ids if params.multi_positive else torch.arange(len(train_set)).unsqueeze(1)
        return cls(
            budget,
            len(train_set),
            len(val_set),
            constant_loss(positive_ids, groups),
            constant_loss(val_set.match_ids, shuffled_batches(len(val_set))),
            float(val_set.text_ids.bincount().max() / len(val_set)),
        )

    def watch(self, history: History) -> None:
        """Warn of signs that were not there before; of those in the curves in the second half only."""
        done = self.budget.end_of_round(len(history.rounds))
        for sign in self.signs(history):
            is_early = 2 * done < self.budget.total_steps and sign.name != "few_rows"
            if sign.name not in self.warned and not is_early:
                self.warned.add(sign.name)
                logger.warning("%s %s", sign.sentence, sign.advice)

    def signs(self, history: History) -> list[Sign]:
        """Signs in the rounds so far, the gravest first."""
        found = [self._collapse(history), self._no_learning(history), self._worse(history), self._few_rows()]
        return [sign for sign in found if sign is not None]

    def verdict(self, history: History) -> dict[str, Any]:
        """JSON of the training's end: `learned` as far as the signs tell, and what they were computed from."""
        signs = self.signs(history)
        return {
            "verdict": "failed" if any(sign.tone == "error" for sign in signs) else "doubtful" if signs else "learned",
            "signs": [asdict(sign) for sign in signs],
            "steps": self.budget.end_of_round(len(history.rounds)),
            "train_rows": self.train_rows,
            "constant_model": {"train_loss": self.train_constant, "val_loss": self.val_constant},
        }

    def _collapse(self, history: History) -> Sign | None:
        share = history.best[f"{history.judged}.top_text_share"]
        if share < COLLAPSED or self.common_text > ONE_TEXT:
            return None
        which = "All" if share == 1 else f"{100 * share:.0f} % of the"
        sentence = f"{which} validation images are nearest to one and the same text ({self._at(history.best_round)})."
        return Sign("collapse", "error", sentence, self._longer())

    def _no_learning(self, history: History) -> Sign | None:
        loss = history.rounds[-1]["train.loss"]
        if loss < NOTHING_LEARNED * self.train_constant:  # nan is no sign of learning either
            return None
        sentence = (
            f"The training loss has not fallen: {loss:.3g} after {self._at(len(history.rounds))}, "
            f"{self.train_constant:.3g} without looking at any image."
        )
        return Sign("no_learning", "error", sentence, self._longer())

    def _worse(self, history: History) -> Sign | None:
        losses = [metrics[f"{history.judged}.loss"] for metrics in history.rounds]
        lowest = min(range(len(losses)), key=losses.__getitem__) + 1
        if len(losses) - lowest < ROUNDS_WORSE or min(losses[-ROUNDS_WORSE:]) < RISEN * losses[lowest - 1]:
            return None
        sentence = (
            f"Validation loss was lowest at {self._at(lowest)} and has risen since, from {losses[lowest - 1]:.3g} to "
            f"{losses[-1]:.3g}; best_model.pt holds the weights of {self._at(history.best_round)}."
        )
        advice = (
            "More training images or stronger train.augment help against overfitting; train.best_metric: val.loss "
            "keeps the weights of the lowest loss."
        )
        return Sign("worse", "warning", sentence, advice)

    def _few_rows(self) -> Sign | None:
        few = [
            f"{rows} {split} images (fewer than {least})"
            for split, rows, least in (
                ("training", self.train_rows, FEW_TRAIN_ROWS),
                ("validation", self.val_rows, FEW_VAL_ROWS),
            )
            if rows < least
        ]
        if not few:
            return None
        advice = (
            "Expect other seeds to differ widely: repeat with -S seed=1 and -S seed=2, and add images where you can."
        )
        return Sign("few_rows", "warning", f"There are only {' and '.join(few)}.", advice)

    def _at(self, number: int) -> str:
        step = self.budget.end_of_round(number)
        return f"epoch {self.budget.epochs_at(step):.3g} (step {step} of {self.budget.total_steps})"

    def _longer(self) -> str:
        return (
            f"Try twice the steps (train.steps: {2 * self.budget.total_steps}), then half the train.learning_rate; "
            "if the loss still stays, look at the pairs in reports/validation/index.html."
        )
