import math

import numpy as np
import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.params.sections import AugmentParams, FreezeParams, LoraParams, TrainParams
from knee_siglip.training import accumulation
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.trainer import Trainer

STILL = AugmentParams(rotation=0, shift=0, scale=0, brightness=0, contrast=0, gamma=0, noise=0)
PARAMS = TrainParams(batch_size=8, epochs=12, learning_rate=5e-3, augment=STILL)


def make_trainer(model, pairs, params=PARAMS, seed=0):
    logged, best = [], []
    trainer = Trainer(
        model,
        pairs(count=28),
        pairs(count=12, seed=5),
        params,
        seed=seed,
        device=torch.device("cpu"),
        log=lambda values, step: logged.append((step, values)),
        on_best=lambda metrics: best.append(metrics),
        guard=FiniteGuard(params.max_skipped_steps, None, lambda rows: [{"row": int(row)} for row in rows]),
    )
    return trainer, logged, best


def test_training_learns_the_pairs(make_model, make_pairs):
    trainer, _, best = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"epochs": 30}))
    history = trainer.fit()
    assert history.rounds[-1]["train.loss"] < 0.7 * history.rounds[0]["train.loss"]
    assert history.rounds[-1]["val.contrastive_accuracy"] > 0.8  # chance is a sixth
    assert best[-1] == history.rounds[history.best_round - 1]


def test_one_seed_makes_two_runs_equal_and_another_does_not(make_model, make_pairs):
    params = PARAMS.model_copy(update={"epochs": 2, "augment": AugmentParams()})
    weights = []
    for seed in (3, 3, 4):
        trainer, _, _ = make_trainer(make_model(), make_pairs, params, seed)
        trainer.fit()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_last_incomplete_batch_is_used(make_model, make_pairs):
    """28 pairs in batches of 8: four steps an epoch, the fourth of 4 pairs."""
    trainer, logged, _ = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"epochs": 2}))
    trainer.fit()
    assert trainer.step == 8
    assert [step for step, values in logged if "epoch" in values] == [4, 8]


def test_a_length_in_steps_ends_within_an_epoch_and_sees_the_same_pairs(make_model, make_pairs):
    """40 steps of 4 an epoch are validated every third one; the order of the pairs does not know of validations."""

    def seen(params):
        trainer, logged, _ = make_trainer(make_model(), make_pairs, params)
        groups, step = [], trainer.train_step
        trainer.train_step = lambda batch, group: (groups.append(group.tolist()), step(batch, group))
        trainer.fit()
        return groups, [(step, values["epoch"]) for step, values in logged if "epoch" in values]

    in_steps, validated = seen(PARAMS.model_copy(update={"epochs": None, "steps": 41}))
    in_epochs, _ = seen(PARAMS)
    assert in_steps == in_epochs[:41]
    assert validated[:4] == [(3, 0.75), (6, 1.5), (9, 2.25), (12, 3)]
    assert validated[-1] == (41, 10.25)


def test_accumulation_takes_one_step_for_all_its_batches(make_model, make_pairs):
    params = PARAMS.model_copy(update={"epochs": 1, "gradient_accumulation_steps": 2})
    accumulated, _, _ = make_trainer(make_model().double(), make_pairs, params)
    accumulated.fit()
    large_batch = PARAMS.model_copy(update={"epochs": 1, "batch_size": 16})
    large, _, _ = make_trainer(make_model().double(), make_pairs, large_batch)
    large.fit()
    assert accumulated.step == large.step == 2
    for a, b in zip(accumulated.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_learning_rate_warms_up_and_falls_once_per_step(make_model, make_pairs):
    trainer, _, _ = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"warmup_ratio": 0.25}))
    rates = []
    step = trainer.schedule.step
    trainer.schedule.step = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())
    trainer.fit()
    peak = int(np.argmax(rates))
    assert len(rates) == 48
    assert max(rates) == pytest.approx(PARAMS.learning_rate)
    assert peak == 11
    assert rates[-1] < PARAMS.learning_rate / 1000


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_frozen_tower_keeps_its_weights(make_model, make_pairs, tower):
    model = make_model()
    freeze_towers(model, FreezeParams(**{tower: "all"}))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    params = PARAMS.model_copy(update={"epochs": 1, "micro_batch_size": 3})
    make_trainer(model, make_pairs, params)[0].fit()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(f"{tower}_model.")
        assert torch.equal(before[name], parameter) or not frozen, name
    assert not torch.equal(before["visual_projection.weight"], model.visual_projection.weight)


def test_adapters_resume_to_the_bit_with_their_average(make_model, make_pairs, tmp_path):
    params = PARAMS.model_copy(update={"epochs": 3, "ema_decay": 0.9, "augment": AugmentParams()})

    def new_trainer(seed):
        model = make_model(seed=seed)
        freeze_towers(model, FreezeParams(vision="lora", text="lora"), LoraParams(rank=4, dropout=0.2))
        return make_trainer(model, make_pairs, params)[0]

    undisturbed, interrupted = new_trainer(0), new_trainer(0)
    undisturbed.fit()

    def save_or_stop():
        if interrupted.step == 6:
            interrupted._flush()
            torch.save(interrupted.state_dict(), tmp_path / "state")
            raise InterruptedError

    interrupted._save_or_stop = save_or_stop
    with pytest.raises(InterruptedError):
        interrupted.fit()
    resumed = new_trainer(seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    resumed.fit()
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    average = undisturbed.ema.state_dict()["shadow"]
    assert all(".lora_" in name or name.startswith(("logit", "visual_projection")) for name in average)
    assert all(torch.equal(resumed.ema.state_dict()["shadow"][name], tensor) for name, tensor in average.items())


def test_a_non_finite_loss_stops_before_the_update(make_model, make_pairs):
    model = make_model()
    trainer, _, _ = make_trainer(model, make_pairs, PARAMS.model_copy(update={"max_skipped_steps": 0}))
    with torch.no_grad():
        model.logit_scale.fill_(float("nan"))
    before = model.visual_projection.weight.clone()
    with pytest.raises(UserError, match=r"step 0: loss nan.*learning_rate"):
        trainer.fit()
    assert torch.equal(before, model.visual_projection.weight)


def test_one_bad_step_is_left_out_and_counted(make_model, make_pairs):
    """Its group changes nothing; the others train on, and the epoch's mean is that of the others."""
    trainer, _, _ = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"epochs": 1}))
    weight, before = trainer.model.visual_projection.weight, []
    mean, step = trainer.model.image_mean.clone(), trainer.train_step

    def spoilt(batch, group):
        before.append(weight.clone())
        trainer.model.image_mean.copy_(float("nan") * mean if trainer.step == 2 else mean)
        step(batch, group)

    trainer.train_step = spoilt
    history = trainer.fit()
    assert torch.equal(before[2], before[3])
    assert not torch.equal(before[1], before[2])
    assert not torch.equal(before[3], weight)
    assert history.rounds[0]["train.skipped_steps"] == 1
    assert math.isfinite(history.rounds[0]["train.loss"])
    assert len(trainer.guard.skipped) == 1


def out_of_memory_above(trainer, limit, monkeypatch, where="forward"):
    """Stands in for a GPU: raises what CUDA raises when more than `limit` pairs are encoded with a graph."""
    original = getattr(trainer.encoder, where)

    def encode(pixels, *rest):
        if torch.is_grad_enabled() and len(pixels) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(pixels, *rest)

    monkeypatch.setattr(trainer.encoder, where, encode)


def test_out_of_memory_halves_the_pieces_and_changes_no_result(make_model, make_pairs, monkeypatch, caplog):
    params = PARAMS.model_copy(update={"epochs": 2, "augment": AugmentParams()})
    roomy, _, _ = make_trainer(make_model(dropout=0.2).double(), make_pairs, params)
    roomy.fit()
    tight, _, _ = make_trainer(make_model(dropout=0.2).double(), make_pairs, params)
    out_of_memory_above(tight, 3, monkeypatch)
    tight.fit()
    assert tight.gradient_cache.micro_batch_size == 2
    for a, b in zip(roomy.model.parameters(), tight.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    warnings = [record.getMessage() for record in caplog.records if "out of GPU memory" in record.getMessage()]
    assert len(warnings) == 1
    assert "encodes 2 pairs at a time, not 8" in warnings[0]
    assert "train.micro_batch_size: 2" in warnings[0]


def test_gradients_of_an_attempt_that_ran_out_of_memory_count_once(make_model, make_pairs, monkeypatch):
    """Memory runs out in the backward pass, after gradients have reached the parameters."""
    params = PARAMS.model_copy(update={"epochs": 1})
    roomy, _, _ = make_trainer(make_model(dropout=0.2).double(), make_pairs, params)
    roomy.fit()
    push = accumulation._push

    def fill_memory(embeds, grads, rows):
        push(embeds, grads, rows)
        if len(embeds[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(accumulation, "_push", fill_memory)
    tight, _, _ = make_trainer(make_model(dropout=0.2).double(), make_pairs, params)
    tight.fit()
    assert tight.gradient_cache.micro_batch_size == 2
    for a, b in zip(roomy.model.parameters(), tight.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_memory_that_does_not_hold_one_pair_is_told(make_model, make_pairs, monkeypatch):
    trainer, _, _ = make_trainer(make_model(), make_pairs)
    out_of_memory_above(trainer, 0, monkeypatch)
    with pytest.raises(UserError, match=r"not even one pair fits.*; lower image_size.*gradient_checkpointing"):
        trainer.fit()


def test_another_error_is_not_taken_for_a_full_memory(make_model, make_pairs, monkeypatch):
    trainer, _, _ = make_trainer(make_model(), make_pairs)

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trainer.encoder, "forward", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trainer.fit()


def test_the_average_of_the_weights_is_measured_beside_them(make_model, make_pairs):
    params = PARAMS.model_copy(update={"epochs": 1, "ema_decay": 0.9, "best_metric": "val_ema.loss"})
    trainer, _, _ = make_trainer(make_model(), make_pairs, params)
    held = []
    trainer.on_best = lambda metrics: held.append(trainer.model.visual_projection.weight.clone())
    history = trainer.fit()
    assert history.rounds[-1]["val_ema.loss"] != history.rounds[-1]["val.loss"]
    shadow = trainer.ema.state_dict()["shadow"]["visual_projection.weight"]
    assert torch.equal(held[-1], shadow)
    assert not torch.equal(trainer.model.visual_projection.weight, shadow)


def test_patience_ends_the_run(make_model, make_pairs):
    trainer, _, best = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"patience": 2}))
    accuracies = iter([0.1, 0.3, 0.2, 0.3])  # a fifth would be asked for in vain
    trainer.validate = lambda: {
        "val.loss": 1.0,
        "val.contrastive_accuracy": next(accuracies),
        "val.top_text_share": 0.5,
    }
    history = trainer.fit()
    assert (len(history.rounds), history.top_round) == (4, 2)
    assert len(best) == 4  # of twelve images no accuracy here is surely worse than another


def test_accuracy_of_the_steps_is_logged_without_a_wait_at_every_step(make_model, make_pairs):
    trainer, logged, _ = make_trainer(make_model(), make_pairs)
    trainer.fit()
    steps = [step for step, values in logged if "train.step_loss" in values]
    assert steps == [10, 20, 30, 40]
    speeds = [values for _, values in logged if "speed.pairs_per_second" in values]
    assert len(speeds) == 12
    assert all(0 <= values["speed.data_wait_share"] <= 1 for values in speeds)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_on_the_cpu_too(make_model, make_pairs, precision):
    trainer, _, _ = make_trainer(make_model(), make_pairs, PARAMS.model_copy(update={"mixed_precision": precision}))
    history = trainer.fit()
    assert history.rounds[-1]["train.loss"] < 0.8 * history.rounds[0]["train.loss"]
    assert next(trainer.model.parameters()).dtype == torch.float32
