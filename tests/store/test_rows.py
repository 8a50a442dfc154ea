"""What a run reads from the store is what was put there: each row is checked when it is first read."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.store import rows, segments
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.rows import CachedRows, RowStore, remove_damaged

WIDTH = 4
IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(8)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Eight rows in segments of three."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3 * WIDTH * 4)
    store = FeatureStore(tmp_path / "features", {"tower": "tower"}, WIDTH)
    store.ensure(IDS, compute)
    return store


def expected(ids: list[str]) -> np.ndarray:
    return np.array([[int(image_id[:4], 16) + column for column in range(WIDTH)] for image_id in ids], np.float32)


def compute(ids: list[str]) -> Iterator[np.ndarray]:
    yield expected(ids)


def flip(store: FeatureStore, image_id: str) -> None:
    number, row = store.locate([image_id])[0]
    file = store.segments[number].file
    data = bytearray(file.read_bytes())
    data[row * WIDTH * 4] ^= 1
    with file.open("r+b") as segment:  # in place: a reader keeps its map
        segment.write(data)


def open_rows(store: FeatureStore, asked: list[str]) -> CachedRows:
    """Rows that note in `asked` which were made again."""

    def restore(ids: list[str]) -> None:
        asked.extend(ids)
        store.ensure(ids, compute)

    return CachedRows(store, IDS, restore=restore)


def test_a_flipped_bit_is_made_good_before_anybody_sees_it(store, caplog):
    made: list[str] = []
    rows = open_rows(store, made)
    for number in (2, 6):
        flip(store, IDS[number])
    assert np.array_equal(rows[np.array([7, 2, 6, 2])], expected([IDS[7], IDS[2], IDS[6], IDS[2]]))
    assert made == sorted([IDS[2], IDS[6]])
    assert "2 damaged images are made again" in caplog.text
    assert np.array_equal(rows[np.arange(8)], expected(IDS))
    again = FeatureStore(store.folder.parent, {"tower": "tower"}, WIDTH)
    assert np.array_equal(again.gather(IDS), expected(IDS))


def test_what_was_checked_once_is_not_hashed_again(store, monkeypatch):
    rows = open_rows(store, [])
    before = rows[np.arange(8)]
    monkeypatch.setattr(hashlib, "sha256", None)
    assert np.array_equal(rows[np.arange(8)], before)


def test_a_row_that_another_process_has_made_good_is_taken_as_it_is(store):
    made: list[str] = []
    rows = open_rows(store, made)
    flip(store, IDS[3])
    other = CachedRows(store, IDS, restore=lambda ids: store.ensure(ids, compute))
    other[np.array([3])]
    assert np.array_equal(rows[np.array([3])], expected([IDS[3]]))
    assert remove_damaged(store.folder, store.layout, IDS) == set()


def test_damage_that_nobody_can_mend_is_a_sentence(store):
    flip(store, IDS[5])
    with pytest.raises(UserError, match="lacks 1 images"):
        CachedRows(store, IDS)[np.array([5])]


def test_a_machine_that_damages_what_it_writes_is_named(store):
    def restore(ids: list[str]) -> None:
        store.ensure(ids, compute)
        flip(store, ids[0])

    flip(store, IDS[5])
    with pytest.raises(UserError, match=f"image {IDS[5]} is damaged again .* check the disk and the memory"):
        CachedRows(store, IDS, restore=restore)[np.array([5])]


def test_threads_that_read_meanwhile_get_the_right_rows(store):
    """The segments are numbered anew when rows are made again."""
    rows, wrong, stop = open_rows(store, []), [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not np.array_equal(rows[np.arange(5)], expected(IDS[:5])):
                wrong.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    for number in (5, 6, 7):
        flip(store, IDS[number])
        rows[np.array([number])]
    stop.set()
    thread.join()
    assert not wrong


@pytest.mark.parametrize(("memory", "rounds"), [(10**9, 1), (1, 2)])
def test_rows_that_may_not_be_in_memory_are_asked_for_at_once(store, monkeypatch, memory, rounds):
    together, asked = threading.Barrier(len(IDS), timeout=20), []
    monkeypatch.setattr(rows, "available_memory", lambda: memory)
    cached = open_rows(store, [])

    def copy_row(_self: RowStore, number: int, row: int) -> None:
        asked.append((number, row))
        together.wait()  # breaks where one is waited for before the next is asked for

    monkeypatch.setattr(RowStore, "_copy_row", copy_row)
    for _ in range(2):
        np.testing.assert_array_equal(cached[np.arange(len(IDS))], expected(IDS))
    assert sorted(asked) == sorted(rounds * [tuple(place) for place in store.locate(IDS).tolist()])
