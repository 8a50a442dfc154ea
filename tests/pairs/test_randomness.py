import pytest
import torch

from knee_siglip.pairs.randomness import derived_keys, sample_keys, uniform

WORD = 2**64


def splitmix64(state, count):
    """The published generator on Python's unbounded integers."""
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        bits = state
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % WORD
        yield bits ^ (bits >> 31)


@pytest.mark.parametrize("state", [0, 1, 2**63 + 5, WORD - 1])
def test_the_sequence_is_splitmix64(state):
    signed = state - WORD if state >= WORD // 2 else state
    numbers = uniform(torch.tensor([signed]), 50)[0]
    expected = [(bits >> 40) / 2**24 for bits in splitmix64(state, 50)]
    assert numbers.tolist() == expected


def test_the_first_word_of_the_published_test_vector():
    assert next(splitmix64(1234567, 1)) == 6457827717110365317


def test_keys_depend_on_seed_stream_and_sample_and_on_nothing_else():
    ids = torch.arange(1000)
    keys = sample_keys(3, 7, ids)
    assert torch.equal(keys[[5, 900]], sample_keys(3, 7, torch.tensor([5, 900])))
    others = [sample_keys(4, 7, ids), sample_keys(3, 8, ids), sample_keys(7, 3, ids)]
    others += [derived_keys(keys, number) for number in range(3)]
    assert len(torch.cat([keys, *others]).unique()) == 7000


def test_numbers_are_uniform_within_and_across_samples():
    numbers = uniform(sample_keys(0, 0, torch.arange(2000)), 500)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for axis in (0, 1):
        assert (numbers.mean(dim=axis) - 0.5).abs().max() < 0.06
    assert numbers.var() == pytest.approx(1 / 12, rel=0.01)
    one, other = numbers[:, 0] - 0.5, numbers[:, 1] - 0.5
    assert ((one * other).mean() * 12).abs() < 0.1
    assert ((numbers[1:, 0] - 0.5) * (numbers[:-1, 0] - 0.5)).mean().abs() * 12 < 0.1
