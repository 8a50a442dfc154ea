import numpy as np
import pytest
import torch

from knee_siglip.pairs.batches import PairDataset, epoch_order, split_groups


@pytest.fixture
def pairs(make_pairs):
    """The rows 100 to 123 of a manifest, with 6 texts: text 0, 1, ..., 5, 0, 1, ..."""
    made = make_pairs(count=24, distinct=6)
    pixels = np.zeros((124, 28, 28), dtype=np.uint8)
    pixels[100:] = made.pixels[np.arange(24)]
    return PairDataset(pixels, np.arange(100, 124), made.input_ids, made.text_ids.numpy())


INDICES = np.array([17, 3, 5, 9, 11, 23])
"""Texts 5, 3, 5, 3, 5, 5."""


def test_each_pair_has_the_pixels_and_the_text_of_its_row(pairs):
    batch = pairs.batch(INDICES)
    assert len(batch) == 6
    assert batch.rows.tolist() == (100 + INDICES).tolist()
    assert torch.equal(batch.pixels, torch.from_numpy(pairs.pixels[100 + INDICES]))
    assert torch.equal(batch.input_ids[batch.places], pairs.input_ids[pairs.text_ids[INDICES]])


def test_a_text_that_pairs_share_stands_once(pairs):
    batch = pairs.batch(INDICES)
    assert batch.distinct.tolist() == [3, 5]
    assert batch.places.tolist() == [1, 0, 1, 0, 1, 1]
    assert torch.equal(batch.input_ids, pairs.input_ids[[3, 5]])


def test_ids_tell_which_row_and_which_text_of_the_data_set(pairs):
    batch = pairs.batch(INDICES)
    assert batch.row_ids.tolist() == (100 + INDICES).tolist()
    assert batch.match_ids[:, 0].tolist() == pairs.text_ids[INDICES].tolist() == [5, 3, 5, 3, 5, 5]
    assert {ids.dtype for ids in (batch.row_ids, batch.match_ids, batch.places, batch.distinct)} == {torch.int64}


def test_an_empty_batch_is_possible(pairs):
    """A device's share of a small last group may be empty."""
    batch = pairs.batch(np.array([], dtype=np.int64))
    assert len(batch) == len(batch.pixels) == len(batch.row_ids) == len(batch.match_ids) == len(batch.input_ids) == 0


def test_on_a_device_pixels_and_tokens_move_and_everything_is_kept(pairs):
    batch = pairs.batch(INDICES)
    same = batch.to(torch.device("cpu"))
    assert same.rows.tolist() == batch.rows.tolist()
    for part in ("pixels", "input_ids", "places", "distinct", "row_ids", "match_ids"):
        assert torch.equal(getattr(same, part), getattr(batch, part))
    moved = batch.to(torch.device("meta"))
    sent, kept = ("pixels", "input_ids", "row_ids", "match_ids"), ("places", "distinct")
    assert {getattr(moved, part).device.type for part in sent} == {"meta"}
    assert {getattr(moved, part).device.type for part in kept} == {"cpu"}
    assert moved.pixels.shape == batch.pixels.shape
    assert moved.pixels.dtype == torch.uint8


def test_the_order_of_an_epoch_is_its_own_and_the_same_at_every_call():
    first = epoch_order(50, seed=1, epoch=0)
    assert sorted(first) == list(range(50))
    assert epoch_order(50, seed=1, epoch=0).tolist() == first.tolist()
    assert epoch_order(50, seed=1, epoch=1).tolist() != first.tolist()
    assert epoch_order(50, seed=2, epoch=0).tolist() != first.tolist()


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (64, [10]), (1, [1] * 10)])
def test_groups_hold_all_rows_in_order_and_the_last_may_be_smaller(size, sizes):
    order = epoch_order(10, seed=0, epoch=0)
    groups = list(split_groups(order, size))
    assert [len(group) for group in groups] == sizes
    assert np.concatenate(groups).tolist() == order.tolist()


@pytest.mark.parametrize(("largest", "kept"), [(32_000, torch.int16), (49_407, torch.int32)])
def test_tokens_are_kept_narrow_and_given_out_whole(pairs, largest, kept):
    input_ids = torch.tensor([[1, largest], [2, 3], [0, 4]])
    dataset = PairDataset(pairs.pixels, pairs.rows, input_ids, np.arange(24) % 3)
    assert dataset.input_ids.dtype == kept
    batch = dataset.batch(np.array([0, 2, 3]))
    assert batch.input_ids.dtype == torch.int64
    assert batch.input_ids[batch.places].tolist() == [[1, largest], [0, 4], [1, largest]]
