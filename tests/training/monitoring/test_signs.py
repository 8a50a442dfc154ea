"""What is noticed while training goes wrong, and that nothing is where it goes well."""

import logging

import numpy as np
import pytest
import torch

from knee_siglip.params.sections import TrainParams
from knee_siglip.training.monitoring.history import History
from knee_siglip.training.monitoring.signs import Monitor
from knee_siglip.training.schedule import Budget

STEPS = 40


def monitor(**facts):
    """Of 40 steps, ten an epoch, validated every fifth; a model without information has a loss of 5."""
    known = {"train_rows": 640, "val_rows": 200, "train_constant": 5.0, "val_constant": 5.0, "common_text": 0.1}
    return Monitor(Budget(STEPS, steps_per_epoch=10, steps_per_round=5), **(known | facts))


def trained(train_loss=(4.0, 3.0, 2.0), val_loss=(4.0, 3.5, 3.2), share=(0.5, 0.4, 0.3), metric="val.loss"):
    history = History(metric)
    for train, val, top in zip(train_loss, val_loss, share, strict=True):
        judged = {f"{history.judged}.{name}": v for name, v in (("loss", val), ("top_text_share", top))}
        history.add({"train.loss": train, "val.loss": val, f"{history.judged}.contrastive_accuracy": 1 - val, **judged})
    return history


def names(history, **facts):
    return [sign.name for sign in monitor(**facts).signs(history)]


def test_a_training_that_learns_has_no_signs():
    verdict = monitor().verdict(trained())
    assert (verdict["verdict"], verdict["signs"]) == ("learned", [])
    assert (verdict["steps"], verdict["constant_model"]["val_loss"]) == (15, 5.0)


@pytest.mark.parametrize("metric", ["val.loss", "val_ema.loss"])
def test_one_text_for_all_is_a_collapse_of_the_weights_that_are_kept(metric):
    collapsed = trained(share=(0.5, 0.4, 1.0), metric=metric)
    (sign,) = monitor().signs(collapsed)
    assert (sign.name, sign.tone) == ("collapse", "error")
    assert sign.sentence == ("All validation images are nearest to one and the same text (epoch 1.5 (step 15 of 40)).")
    assert "train.steps: 80" in sign.advice
    assert monitor().verdict(collapsed)["verdict"] == "failed"
    assert names(trained(share=(1.0, 1.0, 0.3), metric=metric)) == []


def test_one_text_for_all_is_right_where_nearly_all_have_one():
    assert names(trained(share=(1.0, 1.0, 1.0)), common_text=0.9) == []


@pytest.mark.parametrize("loss", [4.95, 6.0, float("nan")])
def test_a_loss_that_stays_at_that_of_no_information_is_told(loss):
    (sign,) = monitor().signs(trained(train_loss=(6.0, 5.0, loss)))
    assert (sign.name, sign.tone) == ("no_learning", "error")
    assert "5 without looking at any image" in sign.sentence


def test_a_validation_loss_that_rises_again_names_the_epoch():
    rising = trained((4.0, 3.0, 2.0, 2.0, 2.0), (4.0, 3.0, 3.5, 3.35, 3.4), (0.5,) * 5)
    (sign,) = monitor().signs(rising)
    assert (sign.name, sign.tone) == ("worse", "warning")
    assert sign.sentence.startswith(
        "Validation loss was lowest at epoch 1 (step 10 of 40) and has risen since, from 3 to 3.4; "
        "best_model.pt holds the weights of epoch 1 (step 10 of 40)"
    )
    for losses in ((3.0, 3.5, 3.4), (3.0, 3.5, 3.2, 3.5), (3.0, 3.1, 3.2, 3.25)):
        assert names(trained((4.0,) * len(losses), losses, (0.5,) * len(losses))) == []


def test_few_rows_are_named():
    (sign,) = monitor(train_rows=60, val_rows=20).signs(trained())
    assert sign.sentence == (
        "There are only 60 training images (fewer than 250) and 20 validation images (fewer than 64)."
    )
    assert monitor(train_rows=60).verdict(trained())["verdict"] == "doubtful"


def test_each_sign_is_warned_of_once_and_curves_are_not_judged_in_the_first_half(caplog):
    watching, history = monitor(), trained(train_loss=(6.0,) * 3, share=(1.0,) * 3)
    with caplog.at_level(logging.WARNING):
        watching.watch(history)
        assert not caplog.records
        history.add(history.rounds[-1])
        watching.watch(history)
        watching.watch(history)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["All", "The"]


def test_what_no_information_is_worth_is_computed_from_the_pairs(make_pairs):
    """28 pairs with their texts; with `multi_positive` off only the very pair is positive."""
    pairs, budget = make_pairs(count=28), Budget(8, 4, 4)
    watching = Monitor.of(pairs, pairs, TrainParams(batch_size=8), budget, seed=0)
    alone = Monitor.of(pairs, pairs, TrainParams(batch_size=8, multi_positive=False), budget, seed=0)
    counts = np.bincount(pairs.text_ids.numpy())
    assert watching.common_text == pytest.approx(counts.max() / 28)
    assert watching.val_constant == pytest.approx(28 * entropy((counts**2).sum() / 28**2), rel=1e-6)
    assert alone.train_constant == pytest.approx((3 * 8 * entropy(1 / 8) + 4 * entropy(1 / 4)) / 4, rel=1e-6)


def entropy(share):
    return float(torch.distributions.Bernoulli(torch.tensor(share, dtype=torch.float64)).entropy())
