"""How long to train, how often to validate, and the learning rate on the way."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from knee_siglip.params.sections import TrainParams

Schedule = Literal["onecycle", "cosine", "constant"]

VALIDATIONS = 16
"""Validations of a training whose length is given in steps."""

LEAST_EPOCHS = 8
SMALL_EPOCHS, LEAST_STEPS, SMALL_STEPS = 64, 400, 1600
DRAWN_STEPS = 350
"""`steps: auto`, all of it measured on real knees (docs/decisions.md): small sets see each pair often, the smallest in
no fewer than `LEAST_STEPS`, before which all images may get one grade, and none in more than `SMALL_STEPS`; large sets
see each pair `LEAST_EPOCHS` times. Drawn images are learnt sooner."""


@dataclass(frozen=True)
class Budget:
    """Optimizer steps: of the whole training, of one pass over its pairs, and from one validation to the next.

    A round is what is trained between two validations; the last one may be shorter.
    """

    total_steps: int
    steps_per_epoch: int
    steps_per_round: int

    @classmethod
    def of(cls, params: TrainParams, rows: int, are_drawn: bool = False) -> "Budget":
        """Of a training on so many pairs: `epochs` where they are given, each a round; else `steps`.

        are_drawn: by a program, which `steps: auto` asks for.
        """
        group_size = params.batch_size * params.gradient_accumulation_steps
        steps_per_epoch = math.ceil(rows / group_size)
        if params.epochs is not None:
            return cls(params.epochs * steps_per_epoch, steps_per_epoch, steps_per_epoch)
        total = _choose_steps(rows / group_size, are_drawn) if params.steps == "auto" else params.steps
        return cls(total, steps_per_epoch, math.ceil(total / VALIDATIONS))

    @property
    def rounds(self) -> int:
        """Of the whole training."""
        return math.ceil(self.total_steps / self.steps_per_round)

    def end_of_round(self, number: int) -> int:
        """Step with which round `number`, from 1, ends."""
        return min(number * self.steps_per_round, self.total_steps)

    def epochs_at(self, step: int) -> int | float:
        """Passes over the training pairs up to a step: whole numbers as int."""
        epochs = step / self.steps_per_epoch
        return int(epochs) if epochs.is_integer() else epochs


def _choose_steps(steps_per_epoch: float, are_drawn: bool) -> int:
    least = DRAWN_STEPS if are_drawn else min(max(round(SMALL_EPOCHS * steps_per_epoch), LEAST_STEPS), SMALL_STEPS)
    return max(least, LEAST_EPOCHS * math.ceil(steps_per_epoch))


def build_schedule(optimizer: AdamW, total_steps: int, warmup_ratio: float, kind: Schedule = "onecycle") -> LRScheduler:
    """Learning rates over all optimizer steps; the groups keep their ratio.

    `onecycle`: from 1/25 up during `warmup_ratio` of the steps and down to nearly zero, both along a cosine, as in the
    reference. `cosine`: linear warm-up, then down along a cosine that would reach zero one step after the last.
    `constant`: linear warm-up, then constant.
    """
    if kind == "onecycle":
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            # OneCycleLR divides by zero where the warm-up is exactly one step, and one step is no warm-up
            pct_start=float(warmup_ratio if warmup_ratio * total_steps > 1 + 1e-6 else 0.0),
            cycle_momentum=False,  # AdamW's first beta stays as in the papers
        )
    warmup = min(round(warmup_ratio * total_steps), total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # no step is wasted at a rate of zero
        if kind == "constant":
            return 1.0
        done = min((step - warmup) / (total_steps - warmup), 1.0)
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
