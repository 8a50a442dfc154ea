import math

import pytest
import torch

from knee_siglip.training.monitoring.history import History

NAN, INF = math.nan, math.inf


def history_of(best_metric, losses, accuracies=None, prefix="val"):
    """Which epochs were the best when they came, and the history."""
    history = History(best_metric)
    pairs = zip(losses, accuracies or [0.5] * len(losses), strict=True)
    epochs = [{f"{prefix}.loss": loss, f"{prefix}.contrastive_accuracy": accuracy} for loss, accuracy in pairs]
    return [number for number, metrics in enumerate(epochs, 1) if history.add(metrics)], history


@pytest.mark.parametrize("prefix", ["val", "val_ema"])
def test_the_lowest_loss_is_the_best(prefix):
    bests, history = history_of(f"{prefix}.loss", [3.0, 2.0, 2.5, 1.0], [0.9, 0.1, 0.5, 0.2], prefix)
    assert bests == [1, 2, 4]
    assert history.best[f"{prefix}.loss"] == 1.0


@pytest.mark.parametrize("prefix", ["val", "val_ema"])
def test_the_highest_accuracy_is_the_best(prefix):
    bests, history = history_of(f"{prefix}.contrastive_accuracy", [1.0, 2.0, 0.5, 9.0], [0.2, 0.3, 0.1, 0.4], prefix)
    assert bests == [1, 2, 4]
    assert history.best[f"{prefix}.contrastive_accuracy"] == 0.4


def test_an_average_of_the_weights_is_judged_by_its_own_figures():
    history = History("val_ema.loss")
    history.add({"val.loss": 1.0, "val_ema.loss": 3.0})
    assert history.add({"val.loss": 2.0, "val_ema.loss": 2.0})


def test_equal_accuracies_are_told_apart_by_the_loss():
    bests, _ = history_of("val.contrastive_accuracy", [2.0, 3.0, 1.0], [0.5, 0.5, 0.5])
    assert bests == [1, 3]


@pytest.mark.parametrize("best_metric", ["val.loss", "val.contrastive_accuracy"])
def test_of_equal_epochs_the_first_is_the_best(best_metric):
    assert history_of(best_metric, [2.0, 2.0, 2.0])[0] == [1]


@pytest.mark.parametrize("best_metric", ["val.loss", "val.contrastive_accuracy"])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("accuracy", [NAN, 0.9])
def test_an_epoch_that_is_not_finite_is_worse_than_any_other(best_metric, bad, accuracy):
    """Whether it comes later, or is the first: the first is kept until a finite one comes, so that there is a model."""
    assert history_of(best_metric, [5.0, bad, 4.0], [0.1, accuracy, 0.2])[0] == [1, 3]
    assert history_of(best_metric, [bad, bad, 5.0, 6.0], [accuracy, accuracy, 0.2, 0.1])[0] == [1, 3]


def test_patience_ends_after_so_many_epochs_without_a_best():
    _, history = history_of("val.loss", [3.0, 2.0, 2.5])
    assert not history.is_stale(2)
    history.add({"val.loss": 2.1, "val.contrastive_accuracy": 0.9})
    assert history.is_stale(2)
    assert not history.is_stale(3)
    assert not history.is_stale(None)
    history.add({"val.loss": 1.0, "val.contrastive_accuracy": 0.1})
    assert not history.is_stale(1)


def test_nothing_is_stale_before_the_first_epoch():
    assert not History("val.loss").is_stale(1)


def test_a_restored_history_judges_as_the_uninterrupted_one(tmp_path):
    _, history = history_of("val.loss", [3.0, 1.0, 2.0])
    torch.save(history.state_dict(), tmp_path / "state.pt")
    restored = History("val.loss")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored == history
    assert restored.best == history.best
    assert restored.is_stale(1)
    assert not restored.add({"val.loss": 1.0, "val.contrastive_accuracy": 1.0})
    assert len(history.rounds) == 3


def test_saving_copies_the_epochs():
    """The state may be written while the next epoch is already under way."""
    _, history = history_of("val.loss", [3.0])
    state = history.state_dict()
    history.add({"val.loss": 1.0, "val.contrastive_accuracy": 0.5})
    assert len(state["rounds"]) == 1


def test_the_last_round_that_is_not_surely_worse_is_kept():
    """Of 100 images an accuracy of 0.5 is known to 0.098: 0.41 may be as good and is later, 0.39 is worse."""
    history = History("val.contrastive_accuracy", val_rows=100)
    accuracies = [0.2, 0.5, 0.39, 0.41, 0.3]
    kept = [history.add({"val.loss": 1.0, "val.contrastive_accuracy": accuracy}) for accuracy in accuracies]
    assert kept == [True, True, False, True, False]
    assert (history.best_round, history.top_round) == (4, 2)
    assert history.is_stale(3)
    assert not history.is_stale(4)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_round_that_is_not_finite_is_never_kept_for_being_late(bad):
    history = History("val.contrastive_accuracy", val_rows=4)
    assert history.add({"val.loss": 1.0, "val.contrastive_accuracy": 0.5})
    assert not history.add({"val.loss": bad, "val.contrastive_accuracy": 0.5})


def test_a_loss_is_compared_strictly():
    history = History("val.loss", val_rows=4)
    losses = [2.0, 1.0, 1.01]
    assert [history.add({"val.loss": loss, "val.contrastive_accuracy": 0.5}) for loss in losses] == [True, True, False]
