"""Between two flushes the host never waits for the device: no value is read back, no ordinary memory is copied.

A CPU is its own device, so this test keeps account of which memory would lie on a GPU: the weights, what `send` and
`Batch.to` copied there, and whatever was computed from these.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knee_siglip.params.sections import TrainParams
from knee_siglip.training import encoder
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.trainer import Trainer
from toys import toy_model, toy_pairs

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
}
"""What needs a value, or the number of values, on the host."""


class Waited(AssertionError):
    """The host would have waited for the device."""


class Accountant(TorchDispatchMode):
    """Knows by its address which memory is the device's and which the host's; the rest belongs to neither."""

    def __init__(self):
        super().__init__()
        self.device, self.host = set(), set()
        self.kept = []  # an address is used again only once its memory is free

    def place(self, tensor, owned, other):
        address = tensor.untyped_storage().data_ptr()
        owned.add(address)
        other.discard(address)
        self.kept.append(tensor)
        return tensor

    def to_device(self, tensor):
        return self.place(tensor, self.device, self.host)

    def to_host(self, tensor):
        return self.place(tensor, self.host, self.device)

    def is_in(self, tensor, owned):
        return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in owned

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        on_device = any(self.is_in(tensor, self.device) for tensor in given)
        if on_device and function in READS:
            raise Waited(f"{function} reads the device")
        if on_device and any(self.is_in(tensor, self.host) and tensor.ndim for tensor in given):
            raise Waited(f"{function} meets memory of the host that nobody sent")
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                if on_device:
                    self.to_device(tensor)
                elif any(self.is_in(value, self.host) for value in given):
                    self.to_host(tensor)
                else:
                    self.kept.append(tensor)
        return result


class GuardedTrainer(Trainer):
    """Takes steps under an accountant's eyes."""

    def observed_step(self, group, disturb=lambda trainer: None, is_sent=True):
        batch = self.train_set.batch(group)
        with Accountant() as accountant:
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                accountant.to_device(tensor.detach())
            for name in ("pixels", "input_ids", "row_ids", "match_ids"):
                object.__setattr__(batch, name, accountant.to_device(getattr(batch, name).clone()))
            for name in ("places", "distinct"):
                accountant.to_host(getattr(batch, name))
            with pytest.MonkeyPatch.context() as patch:
                send = accountant.to_device if is_sent else accountant.to_host
                patch.setattr(encoder, "send", lambda values, device: send(values.clone()))
                self.train_step(batch, group)
                disturb(self)


@pytest.fixture
def make_trainer(tmp_path):
    def make(**params):
        values = {"batch_size": 12, "epochs": 1} | params
        pairs = toy_pairs(count=24)
        return GuardedTrainer(
            toy_model(dropout=values.pop("dropout", 0.0)),
            pairs,
            pairs,
            TrainParams(**values),
            seed=0,
            device=torch.device("cpu"),
            log=lambda metrics, step: None,
            on_best=lambda metrics: None,
            guard=FiniteGuard(3, None, lambda rows: []),
        )

    return make


GROUP = np.arange(12)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"micro_batch_size": 5},
        {"mixed_precision": "bf16"},
        {"multi_positive": False},
        {"ema_decay": 0.9},
        {"dropout": 0.1},
        {"max_grad_norm": None},
    ],
    ids=str,
)
def test_a_step_neither_reads_the_device_nor_copies_ordinary_memory(make_trainer, params):
    trainer = make_trainer(**params)
    for _ in range(2):  # the first one also creates the optimizer's moments
        trainer.observed_step(GROUP)
    assert trainer.step == 2


@pytest.mark.parametrize(
    ("disturb", "message"),
    [
        (lambda trainer: trainer.model.logit_scale.item(), "_local_scalar_dense"),
        (lambda trainer: bool(trainer.model.logit_bias > 0), "_local_scalar_dense"),
        (lambda trainer: (trainer.model.image_mean > 0).nonzero(), "nonzero"),
    ],
)
def test_a_value_that_is_read_is_found(make_trainer, disturb, message):
    with pytest.raises(Waited, match=message):
        make_trainer().observed_step(GROUP, disturb)


def test_ordinary_memory_that_meets_the_device_is_found(make_trainer):
    with pytest.raises(Waited, match="nobody sent"):
        make_trainer().observed_step(GROUP, is_sent=False)
