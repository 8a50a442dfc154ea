"""Dropout by sample: masks are drawn from each sample's key, not from a global generator.

With torch's own dropout an image's mask changes when its batch is cut in pieces or spread over devices. With this one
the gradients of a contrastive batch do not depend on how it was encoded (`training/accumulation.py`).
"""

import logging

import torch
from torch import Tensor, nn

from knee_siglip.encoders.blocks import Attention, DropPath
from knee_siglip.encoders.protocols import Encoder
from knee_siglip.pairs.randomness import derived_keys, uniform

DROP_PATH_CALLS = 2
"""A block calls its one drop path after the attention and after the MLP."""

logger = logging.getLogger(__name__)


class SampleDropout(nn.Module):
    """Zeroes parts of each sample with probability `p` and scales the rest by 1 / (1 - p), in training only.

    Args:
        number: of this place in the network; no two places draw the same.
        calls: times that one forward pass calls it.
        whole: drop whole samples (stochastic depth, Huang et al. 2016, arXiv:1603.09382) instead of single values.
    """

    def __init__(self, p: float, number: int, calls: int = 1, whole: bool = False) -> None:
        super().__init__()
        self.p, self.number, self.calls, self.whole = p, number, calls, whole
        self.keys = torch.empty(0, dtype=torch.int64)
        self._call = 0

    def set_keys(self, keys: Tensor) -> None:
        """Keys (B,) of the next samples; they hold for the forward pass and whatever recomputes parts of it."""
        self.keys, self._call = keys, 0

    def forward(self, values: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.p == 0:
            return values
        assert len(self.keys) == len(values), "set_keys before each forward pass"
        keys = derived_keys(self.keys, self.number * DROP_PATH_CALLS + self._call)
        # wraps around: gradient checkpointing recomputes the block, which calls as often again
        self._call = (self._call + 1) % self.calls
        count = 1 if self.whole else values[0].numel() if len(values) else 0
        shape = (len(values), *([1] * (values.ndim - 1))) if self.whole else values.shape
        kept = (uniform(keys, count) >= self.p).view(shape)
        return values * kept / (1 - self.p)


def use_sample_dropout(encoder: Encoder) -> list[SampleDropout]:
    """Put `SampleDropout` wherever an encoder's config asks for dropout, in place; returns all of its sites.

    With attention dropout, attention is computed in plain steps, since fused kernels draw their own masks. Without
    dropout nothing changes.
    """
    model: nn.Module = encoder.model
    sites: list[SampleDropout] = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            site = _site_for(child, len(sites))
            if site is not None:
                setattr(module, name, site)
                sites.append(site.train(module.training))
        if isinstance(module, Attention) and module.dropout > 0 and module.probability_dropout is None:
            module.probability_dropout = SampleDropout(module.dropout, len(sites)).train(module.training)
            sites.append(module.probability_dropout)
            logger.warning("%s has attention dropout: its attention is not fused", type(model).__name__)
    return sites


def _site_for(child: nn.Module, number: int) -> SampleDropout | None:
    """Replacement of a module that drops; the module itself if it was replaced before, None if it drops nothing."""
    if isinstance(child, SampleDropout):
        return child
    if isinstance(child, nn.Dropout) and child.p > 0:
        return SampleDropout(child.p, number)
    if isinstance(child, DropPath):
        return SampleDropout(child.drop_prob, number, DROP_PATH_CALLS, whole=True)
    return None
