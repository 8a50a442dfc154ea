import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.store import features as feature_store
from knee_siglip.store import filling as store_filling
from knee_siglip.store import segments
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.rows import CachedRows

WIDTH, BLOCK = 16, 4
FACTS = {"transform_key": "0123456789abcdef", "weights": "f" * 64, "precision": "float32"}
IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(12)]

fork = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every row is committed at once, so that a kill meets a known state; segments of three rows."""
    monkeypatch.setattr(store_filling, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3 * WIDTH * 4)
    return tmp_path / "store" / "features"


def expected(ids: list[str]) -> np.ndarray:
    """The tower of these tests: numbers that depend on the id, not on the order of work."""
    seeds = [int(image_id[:8], 16) for image_id in ids]
    return np.stack([np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32) for seed in seeds])


def compute(ids: list[str]) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), BLOCK):
        yield expected(ids[start : start + BLOCK])


def forbidden(ids: list[str]) -> Iterator[np.ndarray]:
    raise AssertionError("features were computed")


def open_store(root: Path) -> FeatureStore:
    return FeatureStore(root, FACTS, WIDTH)


def test_features_are_those_of_the_images(root):
    store = open_store(root)
    assert store.ensure(IDS, compute) == len(IDS)
    assert store.gather(IDS).dtype == np.float32
    assert np.array_equal(store.gather(IDS[::-1]), expected(IDS[::-1]))
    assert store.row_hashes(IDS[:1]) == [hashlib.sha256(expected(IDS[:1]).tobytes()).hexdigest()]


def test_the_folder_says_what_its_features_are(root):
    store = open_store(root)
    store.ensure(IDS, compute)
    told = json.loads((store.folder / "features.json").read_text())
    assert told == FACTS | {"feature_version": 1, "width": WIDTH}


def test_rows_of_the_manifest_are_read_as_pixels_are(root):
    store = open_store(root)
    store.ensure(IDS[:4], compute)
    rows = CachedRows(store, [*IDS, IDS[0]], known=np.array([1, 3, 12]))
    assert np.array_equal(rows[np.array([12, 3, 3])], expected([IDS[0], IDS[3], IDS[3]]))
    with pytest.raises(AssertionError, match="not asked for"):
        rows[np.array([0])]


def test_second_ensure_computes_nothing(root):
    open_store(root).ensure(IDS, compute)
    assert open_store(root).ensure(IDS, forbidden) == 0


def test_only_what_is_missing_is_computed_once_and_in_the_order_asked_for(root):
    open_store(root).ensure(IDS[4:6], compute)
    asked = []

    def note(ids: list[str]) -> Iterator[np.ndarray]:
        asked.extend(ids)
        return compute(ids)

    store = open_store(root)
    assert store.ensure([*IDS, *IDS], note) == len(IDS) - 2
    assert asked == [*IDS[:4], *IDS[6:]]
    assert np.array_equal(store.gather(IDS), expected(IDS))


def test_whatever_gives_other_features_has_another_folder(root, monkeypatch):
    stores = [
        open_store(root),
        FeatureStore(root, FACTS | {"precision": "bfloat16"}, WIDTH),
        FeatureStore(root, FACTS, WIDTH + 1),
    ]
    monkeypatch.setattr(feature_store, "FEATURE_VERSION", 2)
    stores.append(open_store(root))
    assert len({store.folder for store in stores}) == 4
    stores[0].ensure(IDS, compute)
    assert all(store.missing(IDS) == set(IDS) for store in stores[1:])


def test_what_was_computed_before_an_exception_stays(root, monkeypatch):
    """Also what was not committed yet."""
    monkeypatch.setattr(store_filling, "COMMIT_SECONDS", 1000)

    def fail_halfway(ids: list[str]) -> Iterator[np.ndarray]:
        yield expected(ids[:BLOCK])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        open_store(root).ensure(IDS, fail_halfway)
    store = open_store(root)
    assert store.missing(IDS) == set(IDS[BLOCK:])
    assert store.ensure(IDS, compute) == len(IDS) - BLOCK
    assert np.array_equal(store.gather(IDS), expected(IDS))


def test_what_was_computed_before_a_kill_stays(root):
    def die_halfway(ids: list[str]) -> Iterator[np.ndarray]:
        yield expected(ids[:BLOCK])
        os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=open_store(root).ensure, args=(IDS, die_halfway))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    store = open_store(root)
    assert store.missing(IDS) == set(IDS[BLOCK:])
    assert store.ensure(IDS, compute) == len(IDS) - BLOCK
    assert np.array_equal(store.gather(IDS), expected(IDS))


@pytest.mark.parametrize(("length", "lost"), [(0, 3), (WIDTH * 4 + 7, 2)])
def test_a_truncated_segment_is_computed_again(root, length, lost):
    store = open_store(root)
    store.ensure(IDS, compute)
    os.truncate(store.segments[0].file, length)
    mended = open_store(root)
    assert mended.ensure(IDS, compute) == lost
    assert np.array_equal(mended.gather(IDS), expected(IDS))


def test_two_processes_compute_nothing_twice(root):
    def slowly(ids: list[str]) -> Iterator[np.ndarray]:
        for block in compute(ids):
            time.sleep(0.1)
            yield block

    def ensure(ids: list[str], computed) -> None:
        computed.put(open_store(root).ensure(ids, slowly))

    computed = fork.SimpleQueue()
    processes = [fork.Process(target=ensure, args=(ids, computed)) for ids in (IDS[:8], IDS[4:], IDS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(computed.get() for _ in processes) == len(IDS)
    assert np.array_equal(open_store(root).gather(IDS), expected(IDS))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(root, value):
    def break_one(ids: list[str]) -> Iterator[np.ndarray]:
        features = expected(ids)
        features[5, 3] = value
        yield features

    with pytest.raises(UserError, match=f"image {IDS[5]}: .* not finite"):
        open_store(root).ensure(IDS, break_one)
    assert open_store(root).missing(IDS) == set(IDS[5:])


def test_features_that_are_missing_are_counted(root):
    with pytest.raises(UserError, match=r"lacks 2 images; run the command again"):
        open_store(root).gather(IDS[:2])


@pytest.mark.parametrize("wrong", [np.float64, np.float16])
def test_other_numbers_than_float32_are_refused(root, wrong):
    with pytest.raises(AssertionError, match="dtype"):
        open_store(root).ensure(IDS, lambda ids: [expected(ids).astype(wrong)])
