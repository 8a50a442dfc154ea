import threading

import pytest
import torch

from knee_siglip.pairs import prefetch
from knee_siglip.pairs.batches import epoch_order, split_groups
from knee_siglip.pairs.prefetch import prefetch_batches

CPU = torch.device("cpu")
PATIENCE = 30
"""Seconds after which a test gives up; they are never waited for where the code is right."""


@pytest.fixture
def groups():
    return list(split_groups(epoch_order(24, seed=0, epoch=0), 5))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class NoThread:
    """Gathers at once what a thread would gather as soon as it can."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = prefetch.Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize("ahead", [0, 1, 2, 16])
def test_batches_are_those_of_the_data_set_in_order(make_pairs, groups, ahead):
    pairs = make_pairs()
    batches = list(prefetch_batches(pairs.batch, groups, CPU, ahead))
    assert len(batches) == len(groups) == 5
    for batch, group in zip(batches, groups, strict=True):
        expected = pairs.batch(group)
        assert batch.rows.tolist() == group.tolist()
        for part in ("pixels", "input_ids", "places", "distinct"):
            assert torch.equal(getattr(batch, part), getattr(expected, part))
    assert not threads()


def test_the_next_batch_is_gathered_while_one_is_used(make_pairs, groups):
    pairs, second = make_pairs(), threading.Event()

    def gather(indices):
        if indices is groups[1]:
            second.set()
        return pairs.batch(indices)

    batches = prefetch_batches(gather, groups, CPU, ahead=1)
    next(batches)
    assert second.wait(PATIENCE)
    batches.close()


@pytest.mark.parametrize(
    ("device", "ahead", "expected"),
    [("cpu", 0, 0), ("cpu", 1, 1), ("cpu", 3, 3), ("cpu", "auto", 0), ("meta", "auto", 1)],
)
def test_so_many_batches_are_gathered_in_advance_and_no_more(make_pairs, groups, monkeypatch, device, ahead, expected):
    pairs, gathered = make_pairs(), []
    monkeypatch.setattr(prefetch, "ThreadPoolExecutor", NoThread)
    batches = prefetch_batches(
        lambda indices: gathered.append(1) or pairs.batch(indices), groups, torch.device(device), ahead
    )
    counts = [len(gathered) for _ in batches]
    assert counts == [min(number + expected, 5) for number in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_out_in_its_place_and_ends_the_thread(make_pairs, groups, ahead):
    pairs = make_pairs()

    def gather(indices):
        if indices is groups[2]:
            raise OSError("the disk is gone")
        return pairs.batch(indices)

    batches, rows = prefetch_batches(gather, groups, CPU, ahead), []
    with pytest.raises(OSError, match="the disk is gone"):
        rows.extend(batch.rows.tolist() for batch in batches)
    del batches
    assert rows == [groups[0].tolist(), groups[1].tolist()]
    assert not threads()


def test_leaving_early_ends_the_thread(make_pairs, groups):
    batches = prefetch_batches(make_pairs().batch, groups, CPU, ahead=2)
    next(batches)
    assert threads()
    batches.close()
    assert not threads()


def test_leaving_early_gathers_nothing_that_was_not_begun(make_pairs, groups, monkeypatch):
    futures = []

    class Slow(NoThread):
        """Has not come further than the first batch."""

        def submit(self, function, *arguments):
            futures.append(prefetch.Future() if futures else super().submit(function, *arguments))
            return futures[-1]

    monkeypatch.setattr(prefetch, "ThreadPoolExecutor", Slow)
    batches = prefetch_batches(make_pairs().batch, groups, CPU, ahead=2)
    next(batches)
    batches.close()
    assert [future.cancelled() for future in futures] == [False, True, True]


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_come_on_the_device(make_pairs, groups, ahead):
    devices = {
        batch.pixels.device.type for batch in prefetch_batches(make_pairs().batch, groups, torch.device("meta"), ahead)
    }
    assert devices == {"meta"}


def test_without_prefetching_there_is_no_thread(make_pairs, groups):
    pairs, names = make_pairs(), set()

    def gather(indices):
        names.add(threading.current_thread().name)
        return pairs.batch(indices)

    list(prefetch_batches(gather, groups, CPU, ahead=0))
    assert names == {threading.current_thread().name}


@pytest.mark.parametrize("ahead", [0, 2])
def test_waiting_is_told_once_for_each_batch(make_pairs, groups, ahead):
    waits = []
    list(prefetch_batches(make_pairs().batch, groups, CPU, ahead, waits.append))
    assert len(waits) == 5
    assert min(waits) >= 0


def test_no_batches_are_none(make_pairs):
    for ahead in (0, 2):
        assert list(prefetch_batches(make_pairs().batch, [], CPU, ahead)) == []


def test_the_thread_works_on_its_ranks_own_gpu(monkeypatch, groups, make_pairs):
    chosen = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread().name, device))
    )
    monkeypatch.setattr(prefetch.Batch, "pin", lambda batch: batch)
    monkeypatch.setattr(prefetch.Batch, "to", lambda batch, device: batch)
    second = torch.device("cuda", 1)
    assert len(list(prefetch_batches(make_pairs(count=24).batch, groups, second, 1))) == len(groups)
    assert chosen == [("prefetch_0", second)]
