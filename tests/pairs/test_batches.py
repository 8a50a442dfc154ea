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


@pytest.fixture
def mirrored(pairs):
    """The pairs of texts 0 to 2 may be mirrored, to texts 1, 2 and 0; two images are a study."""
    pixels = np.random.default_rng(0).integers(0, 256, pairs.pixels.shape, dtype=np.uint8)
    texts = pairs.text_ids.numpy()
    other = np.array([1, 2, 0, -1, -1, -1])[texts]
    return PairDataset(pixels, pairs.rows, pairs.input_ids, texts, np.arange(24) // 2, None, other, 0.5)


def test_a_mirrored_pair_has_its_image_mirrored_and_its_other_text(mirrored):
    batch = mirrored.batch(np.array([6, 24 + 6, 24 + 7]))
    assert len(mirrored) == 24
    assert batch.rows.tolist() == batch.row_ids.tolist() == [106, 106, 107]
    assert torch.equal(batch.pixels[0], torch.from_numpy(mirrored.pixels[106]))
    assert torch.equal(batch.pixels[1], batch.pixels[0].flip(-1))
    assert batch.match_ids[:, 0].tolist() == [0, 1, 2]
    assert torch.equal(batch.input_ids[batch.places], mirrored.input_ids[[0, 1, 2]])


def test_a_mirrored_image_is_of_the_mirrored_study(mirrored):
    studies = mirrored.batch(np.array([6, 7, 24 + 6, 24 + 7])).match_ids[:, 1]
    assert studies[0] == studies[1] != studies[2] == studies[3]
    assert studies[2] not in mirrored.match_ids[:24, 1]


def test_an_epoch_holds_each_pair_once_as_it_is_or_mirrored_where_it_may_be(mirrored):
    orders = [mirrored.epoch(0, number) for number in range(20)]
    assert all(sorted(order % 24) == list(range(24)) for order in orders)
    assert mirrored.epoch(0, 3).tolist() == orders[3].tolist()
    flipped = np.concatenate(orders)[np.concatenate(orders) >= 24] - 24
    assert 0.3 < len(flipped) / (20 * 12) < 0.7
    assert set(mirrored.text_ids.numpy()[flipped]) == {0, 1, 2}
    assert (orders[0] >= 24).nonzero()[0].tolist() != (orders[1] >= 24).nonzero()[0].tolist()


def test_without_mirrored_texts_an_epoch_is_its_order(pairs):
    assert pairs.epoch(1, 2).tolist() == epoch_order(24, 1, 2).tolist()
