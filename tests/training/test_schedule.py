"""How long a training is, where it validates, and its learning rates."""

import math

import pytest
import torch
from torch.optim import AdamW

from knee_siglip.params.sections import TrainParams
from knee_siglip.training.optimizer import build_optimizer
from knee_siglip.training.schedule import (
    DRAWN_STEPS,
    LEAST_EPOCHS,
    LEAST_STEPS,
    SMALL_STEPS,
    VALIDATIONS,
    Budget,
    build_schedule,
)


def budget(rows, are_drawn=False, **params):
    return Budget.of(TrainParams(**params), rows, are_drawn)


def test_epochs_are_obeyed_and_each_ends_with_a_validation():
    assert budget(100, batch_size=8, epochs=3) == Budget(total_steps=39, steps_per_epoch=13, steps_per_round=13)
    assert budget(100, batch_size=8, gradient_accumulation_steps=2, epochs=3).total_steps == 21
    assert budget(100, batch_size=8, epochs=3).rounds == 3


def test_steps_are_obeyed_however_many_epochs_that_is():
    """One step an epoch, or a part of an epoch: so many validations all the same, one of them after the last step."""
    for rows in (5, 100, 1_000_000):
        long = budget(rows, batch_size=8, steps=1000)
        ends = [long.end_of_round(number) for number in range(long.rounds + 1)]
        assert (ends[0], ends[-1], long.rounds) == (0, 1000, VALIDATIONS)
        assert ends == sorted(set(ends))


@pytest.mark.parametrize("steps", [1, 2, 15, 17, 33])
def test_no_round_is_empty(steps):
    short = budget(50, batch_size=8, steps=steps)
    ends = [short.end_of_round(number) for number in range(short.rounds + 1)]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps


def test_auto_gives_few_rows_enough_steps_and_many_rows_enough_epochs():
    for rows in (2, 60, 300, 400):
        assert budget(rows).total_steps == LEAST_STEPS
    assert budget(960).total_steps == 960
    for rows in (1600, 8000):
        assert budget(rows).total_steps == SMALL_STEPS
    assert budget(64_000).total_steps == LEAST_EPOCHS * 1000
    assert budget(64_000, gradient_accumulation_steps=2).total_steps == LEAST_EPOCHS * 500
    assert budget(64_000, batch_size=16_384).total_steps == LEAST_STEPS
    lengths = [budget(rows).total_steps for rows in range(60, 20_000, 7)]
    assert lengths == sorted(lengths)


def test_auto_trains_drawn_images_shorter():
    assert budget(60, are_drawn=True).total_steps == budget(1590, are_drawn=True).total_steps == DRAWN_STEPS
    assert budget(64_000, are_drawn=True).total_steps == LEAST_EPOCHS * 1000


def test_epochs_are_counted_in_fractions():
    long = budget(100, batch_size=8, steps=1000)
    assert long.epochs_at(26) == 2
    assert isinstance(long.epochs_at(26), int)
    assert long.epochs_at(19) == pytest.approx(19 / 13)


def rates(kind, total_steps, warmup_ratio=0.25):
    """Shares of each group's own learning rate, step by step: (steps, groups)."""
    full = torch.tensor([1e-3, 2e-4], dtype=torch.float64)
    optimizer = AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in full.tolist()])
    schedule = build_schedule(optimizer, total_steps, warmup_ratio, kind)
    steps = []
    for _ in range(total_steps):
        steps.append(torch.tensor(schedule.get_last_lr(), dtype=torch.float64) / full)
        optimizer.step()
        schedule.step()
    return torch.stack(steps)


@pytest.mark.parametrize(
    ("kind", "total_steps", "expected"),
    [
        ("onecycle", 1, {0: 4e-6}),
        ("onecycle", 2, {0: 0.5, 1: 4e-6}),
        ("onecycle", 20, {0: 1 / 25, 2: 0.52, 4: 1, 9: 0.75, 14: 0.25, 19: 4e-6}),
        ("cosine", 1, {0: 1}),
        ("cosine", 2, {0: 1, 1: 0.5}),
        ("cosine", 20, {0: 1 / 6, 4: 5 / 6, 5: 1, 10: 0.75, 15: 0.25, 19: 0.5 + 0.5 * math.cos(math.pi * 14 / 15)}),
        ("constant", 1, {0: 1}),
        ("constant", 2, {0: 1, 1: 1}),
        ("constant", 20, {0: 1 / 6, 4: 5 / 6, 5: 1, 10: 1, 19: 1}),
    ],
)
def test_schedules_follow_their_curves(kind, total_steps, expected):
    """A warm-up of a quarter; the groups keep their ratio. Onecycle's last rate, 4e-6, is a part of its others too."""
    for group in rates(kind, total_steps).T.tolist():
        assert {step: group[step] for step in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["onecycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("total_steps", [1, 2, 19, 20, 21, 40])
def test_a_schedule_of_any_length_is_finite_and_positive(kind, warmup_ratio, total_steps):
    """At 20 steps a warm-up of 0.05 is exactly one step, where torch's own schedule divides by zero."""
    steps = rates(kind, total_steps, warmup_ratio)
    assert steps.isfinite().all()
    assert (steps > 0).all()
    assert (steps <= 1 + 1e-12).all()


def test_momentum_is_not_cycled(make_model):
    optimizer = build_optimizer(make_model(), TrainParams())
    build_schedule(optimizer, 20, 0.25)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
