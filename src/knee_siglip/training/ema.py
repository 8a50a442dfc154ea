"""A moving average of the weights, evaluated beside them.

Averaging the iterates: Polyak and Juditsky 1992 (SIAM J Control Optim 30:838).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a model's trained weights, on their device and in their dtype.

    After each step `shadow = d * shadow + (1 - d) * weights` with `d = min(decay, (1 + t) / (10 + t))` after t updates:
    the average forgets its random start within a few steps. Source of the warm-up: TensorFlow's
    `tf.train.ExponentialMovingAverage`, argument `num_updates`.

    Args:
        model: frozen parameters are left out, so freeze them before.
        decay: in (0, 1); averages over about 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.decay = decay
        self.updates = 0
        self._names = list(trained)
        self._weights: list[Tensor] = [parameter.detach() for parameter in trained.values()]
        self._shadow = [weight.clone() for weight in self._weights]
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights after an optimizer step; the host does not wait for the device."""
        assert not self._is_applied, "the model holds the average itself"
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._shadow, self._weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model while the block runs; its own weights return bit for bit, errors or not."""
        assert not self._is_applied, "the model holds the average already"
        self._swap()
        self._is_applied = True
        try:
            yield
        finally:
            self._swap()
            self._is_applied = False

    @torch.no_grad()
    def _swap(self) -> None:
        """Swap in place, since a compiled model and the optimizer hold these tensors; needs one spare tensor."""
        for weight, shadow in zip(self._weights, self._shadow, strict=True):
            kept = weight.clone()
            weight.copy_(shadow)
            shadow.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, loadable with `weights_only`; the tensors are the average itself, not copies."""
        assert not self._is_applied, "the model holds the average itself"
        return {"updates": self.updates, "shadow": dict(zip(self._names, self._shadow, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a model with the same trained parameters."""
        assert not self._is_applied, "the model holds the average itself"
        assert list(state["shadow"]) == self._names, "the average is of other parameters than those trained here"
        self.updates = state["updates"]
        for shadow, saved in zip(self._shadow, state["shadow"].values(), strict=True):
            shadow.copy_(saved)
