"""Random numbers by sample, not by call.

An image's random numbers depend on the seed, the step and the image alone: not on its batch, the device, or how many
numbers were drawn before. So a batch cut in pieces, spread over devices or resumed after a crash draws the same.

The generator is SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) with the key as its state; 64-bit
integers wrap around in the same way on all devices.
"""

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
LAST_SHIFT = 31
FLOAT_BITS = 24


def sample_keys(seed: int, stream: int, ids: Tensor) -> Tensor:
    """Keys (B,) int64 of samples `ids` (B,) int64, on their device; `stream` keeps one purpose from another."""
    key = _absorb(torch.zeros((), dtype=torch.int64), torch.tensor(seed))
    return _absorb(_absorb(key, torch.tensor(stream)), ids)


def derived_keys(keys: Tensor, number: int) -> Tensor:
    """(B,) keys of the same samples for another purpose, such as another layer."""
    return _absorb(_mix(keys), torch.tensor(number))


def uniform(keys: Tensor, count: int) -> Tensor:
    """(B, count) float32 in [0, 1), the first `count` numbers of each key's sequence."""
    counters = torch.arange(1, count + 1, device=keys.device)
    bits = _mix(keys.unsqueeze(1) + GAMMA * counters)
    return _logical_shift(bits, 64 - FLOAT_BITS).to(torch.float32) * 2.0**-FLOAT_BITS


def _absorb(key: Tensor, value: Tensor) -> Tensor:
    return _mix(key + GAMMA * (value + 1))


def _mix(bits: Tensor) -> Tensor:
    for shift, factor in MIX:
        bits = (bits ^ _logical_shift(bits, shift)) * factor
    return bits ^ _logical_shift(bits, LAST_SHIFT)


def _logical_shift(bits: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros: torch's own copies the sign."""
    return (bits >> count) & (2 ** (64 - count) - 1)
