"""Training of the image encoder on the images alone, before the contrastive training."""

import logging
import math

import numpy as np
import pytest
import torch

from knee_siglip.core.errors import Interrupted
from knee_siglip.params.sections import TrainParams, WarmUpParams
from knee_siglip.training import trainer as trainer_module
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.run import train
from knee_siglip.training.trainer import Trainer
from knee_siglip.training.unlabelled.warm_up import ntxent_loss, warm_up

WARM = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}


def warmed(model, **params):
    """On 28 images of 16 squares each."""
    squares = np.random.default_rng(0).integers(0, 256, (28, 4, 4), dtype=np.uint8)
    return warm_up(
        model,
        squares.repeat(7, axis=1).repeat(7, axis=2),
        np.arange(28),
        WarmUpParams(**(WARM | params)),
        seed=0,
        dtype=None,
        ranks=Ranks(),
        check_stop=lambda: None,
    )


def vision_and_rest(model):
    """The image encoder's weights, and all others: (n,) each."""
    parts = [], []
    for name, parameter in model.named_parameters():
        parts[not name.startswith("vision_model.")].append(parameter.detach().flatten().clone())
    return torch.cat(parts[0]), torch.cat(parts[1])


def final_weights(files):
    return torch.load(files.final_model, weights_only=True)["weights"]


def assert_equal(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_the_cross_entropy_of_finding_each_copys_partner():
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    a = first / first.norm(dim=1, keepdim=True)
    b = second / second.norm(dim=1, keepdim=True)
    expected = 0.0
    for i in range(5):
        for one, others in ((a[i], b), (b[i], a)):
            similar = [math.exp(float(one @ other) / 0.1) for other in others]
            expected -= math.log(similar[i] / sum(similar)) / 10
    assert ntxent_loss(first, second).item() == pytest.approx(expected)
    assert ntxent_loss(first, first) < ntxent_loss(first, first.roll(1, dims=0))


def test_it_learns_to_find_the_other_copy_and_touches_nothing_but_the_image_encoder(make_model):
    model = make_model()
    vision, rest = vision_and_rest(model)
    state = torch.get_rng_state()
    losses = warmed(model, epochs=15, learning_rate=5e-3)
    assert len(losses) == 15
    assert losses[-1] < 0.8 * losses[0]
    after = vision_and_rest(model)
    assert not torch.equal(after[0], vision)
    assert torch.equal(after[1], rest)
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_images_than_a_batch_are_one_batch(make_model):
    assert math.isfinite(warmed(make_model(), batch_size=64)[0])


def test_two_runs_are_equal_to_the_bit_and_differ_from_one_without(files, make_params, caplog):
    caplog.set_level(logging.WARNING)
    found = []
    for epochs in (2, 2, 0):
        train(make_params(epochs=1, warm_up=WARM | {"epochs": epochs}), files, "cpu")
        found.append(final_weights(files))
    assert_equal(found[0], found[1])
    name = "vision_model.embeddings.cls_token"
    assert not torch.equal(found[0][name], found[2][name])
    assert caplog.text.count("warm-up on 28 images") == 2


def test_interrupted_it_saves_nothing_and_the_next_run_ends_with_the_same_weights(files, make_params, monkeypatch):
    params = make_params(epochs=1, warm_up=WARM)
    train(params, files, "cpu")
    expected = final_weights(files)
    files.final_model.unlink()

    def stop(*args, check_stop, **kwargs):
        trainer.stop.signal = trainer_module.signal.SIGTERM
        warm_up(*args, check_stop=check_stop, **kwargs)

    begin = Trainer.fit

    def fit(self):
        nonlocal trainer
        trainer = self
        return begin(self)

    trainer = None
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "warm_up", stop)
        patch.setattr(Trainer, "fit", fit)
        with pytest.raises(Interrupted, match="SIGTERM: stopped during the warm-up"):
            train(params, files, "cpu")
    assert not files.final_model.exists()
    train(params, files, "cpu")
    assert_equal(final_weights(files), expected)


def test_a_resumed_training_does_not_repeat_it(files, make_params, monkeypatch, caplog):
    params = make_params(epochs=2, save_every_steps=4, warm_up=WARM)
    train(params, files, "cpu")
    expected = final_weights(files)
    step = Trainer.train_step

    def die(self, *args):
        if self.step == 5:
            raise KeyboardInterrupt
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(params, files, "cpu")
    caplog.clear()
    train(params, files, "cpu")
    assert "resuming at step 4" in caplog.text
    assert "warm-up on" not in caplog.text
    assert_equal(final_weights(files), expected)


def test_the_moving_average_starts_from_the_warmed_weights(files, make_params):
    """At a learning rate of almost zero it is what it started from."""
    found = []
    for average in ({}, {"ema_decay": 0.5, "best_metric": "val_ema.loss"}):
        train(make_params(epochs=1, warm_up=WARM, learning_rate=1e-9, **average), files, "cpu")
        found.append(final_weights(files)["vision_model.embeddings.cls_token"])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_frozen_image_encoder_cannot_be_warmed():
    with pytest.raises(ValueError, match=r"warm_up.epochs = 5 .* freeze.vision = all: set freeze.vision: none"):
        TrainParams(warm_up={"epochs": 5}, freeze={"vision": "all"})
    assert TrainParams(freeze={"vision": "all"}).warm_up.epochs == 0
