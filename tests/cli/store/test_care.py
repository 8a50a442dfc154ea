import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.cli.store.care import (
    StoredRows,
    choose_prunable,
    find_damaged,
    list_stored,
    remove_damaged_images,
    remove_stored,
)
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.store import features as feature_store
from knee_siglip.store import segments
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.filling import locked
from knee_siglip.store.pixels import PixelStore
from knee_siglip.store.rows import RowStore
from knee_siglip.store.segments import feature_rows, pixel_rows

SMALL, LARGE = Transform(28, "pad", "local"), Transform(56, "pad", "local")
IMAGES = 8
WIDTH = 16


@pytest.fixture
def originals(tmp_path: Path) -> tuple[list[str], list[Path]]:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 30)).astype(np.uint8)).save(file)
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], files


@pytest.fixture
def root(tmp_path: Path, originals) -> Path:
    """A store with all images at two sizes."""
    for transform in (SMALL, LARGE):
        PixelStore(tmp_path / "pixels", transform).ensure(*originals, workers=1)
    return tmp_path / "pixels"


@pytest.fixture
def cache_facts(tmp_path: Path) -> Path:
    """A cache.json that names the small transform."""
    path = tmp_path / "cache.json"
    path.write_text(json.dumps({"transform_key": SMALL.key}))
    return path


def by_key(found: list[StoredRows]) -> dict[str, StoredRows]:
    return {stored.folder.name: stored for stored in found}


def age(root: Path, transform: Transform, days: float) -> None:
    set_last_use(root / transform.key / "transform.json", days)


def set_last_use(facts: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(facts, (then, then))


def make_old_version(root: Path) -> Path:
    """As a former knee-siglip left it: segments of another format, another version."""
    folder = root / "0123456789abcdef"
    folder.mkdir()
    (folder / "transform.json").write_text(json.dumps({"version": 0, "image_size": 28}))
    (folder / "old.npy").write_bytes(bytes(5000))
    (folder / "old.ids").write_text("a b\n")
    return folder


def test_shelves_tell_what_is_there(root, cache_facts):
    found = by_key(list_stored(root.parent, cache_facts))
    small, large = found[SMALL.key], found[LARGE.key]
    assert (small.images, small.segments, small.layout, small.current) == (IMAGES, 1, pixel_rows(28), True)
    assert (large.images, large.layout, large.current, large.usable) == (IMAGES, pixel_rows(56), False, True)
    assert (large.kind, large.facts) == ("pixels", LARGE.to_dict())
    assert large.bytes >= IMAGES * 56 * 56


def test_what_was_used_last_comes_first(root, cache_facts, originals):
    age(root, SMALL, 1)
    assert [stored.folder.name for stored in list_stored(root.parent, cache_facts)] == [LARGE.key, SMALL.key]
    PixelStore(root, SMALL).ensure(*originals)
    assert [stored.folder.name for stored in list_stored(root.parent, cache_facts)] == [SMALL.key, LARGE.key]


def test_no_store_no_shelves(tmp_path):
    assert list_stored(tmp_path / "nothing", tmp_path / "cache.json") == []


def test_a_foreign_folder_is_shown_without_images(root, cache_facts):
    make_old_version(root)
    stored = by_key(list_stored(root.parent, cache_facts))["0123456789abcdef"]
    assert (stored.images, stored.usable) == (0, False)


def test_a_folder_without_facts_is_shown_without_images_and_has_no_damage(root, cache_facts):
    (root / LARGE.key / "transform.json").unlink()
    stored = by_key(list_stored(root.parent, cache_facts))[LARGE.key]
    assert (stored.images, stored.layout, stored.usable, stored.last_used) == (0, None, False, None)
    assert find_damaged(stored) == []


def test_only_other_versions_go_by_themselves(root, cache_facts):
    old = make_old_version(root)
    assert [stored.folder for stored in choose_prunable(list_stored(root.parent, cache_facts), None, False)] == [old]


def test_what_was_not_used_for_long_goes_but_never_the_current(root, cache_facts):
    age(root, SMALL, 100)
    age(root, LARGE, 20)
    found = list_stored(root.parent, cache_facts)
    assert [stored.folder.name for stored in choose_prunable(found, 10, False)] == [LARGE.key]
    assert choose_prunable(found, 30, False) == []


def test_all_but_current_needs_a_current_one(root, cache_facts, tmp_path):
    found = list_stored(root.parent, cache_facts)
    assert [stored.folder.name for stored in choose_prunable(found, None, True)] == [LARGE.key]
    with pytest.raises(UsageError, match="would take everything"):
        choose_prunable(list_stored(root.parent, tmp_path / "none.json"), None, True)


def test_removed_pixels_are_gone_for_show_but_not_for_those_who_hold_them(root, cache_facts, originals):
    reader = PixelStore(root, LARGE)
    before = reader.gather(originals[0])
    remove_stored(by_key(list_stored(root.parent, cache_facts))[LARGE.key])
    assert list(by_key(list_stored(root.parent, cache_facts))) == [SMALL.key]
    assert np.array_equal(reader.gather(originals[0]), before)
    assert PixelStore(root, LARGE).ensure(*originals, workers=1) == IMAGES


def test_a_shelf_that_is_being_filled_is_not_removed(root, cache_facts):
    stored = by_key(list_stored(root.parent, cache_facts))[LARGE.key]
    with locked(stored.folder), pytest.raises(UserError, match="another process is filling"):
        remove_stored(stored)
    assert by_key(list_stored(root.parent, cache_facts))[LARGE.key] == stored


def flip(root: Path, image_id: str) -> None:
    """Change one bit of an image's stored pixels."""
    flip_row(PixelStore(root, SMALL), image_id)


def flip_row(store: RowStore, image_id: str) -> None:
    number, row = store.locate([image_id])[0]
    with store.segments[number].file.open("r+b") as file:
        file.seek(row * store.layout.nbytes + 50)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_undamaged_pixels_are_found_undamaged(root, cache_facts):
    assert [find_damaged(stored) for stored in list_stored(root.parent, cache_facts)] == [[], []]


def test_flipped_bits_are_found_and_mended_by_the_next_run(root, cache_facts, originals):
    ids, files = originals
    for number in (2, 5):
        flip(root, ids[number])
    stored = by_key(list_stored(root.parent, cache_facts))[SMALL.key]
    damaged = find_damaged(stored)
    assert damaged == sorted([ids[2], ids[5]])
    remove_damaged_images(stored, damaged)
    pixels = PixelStore(root, SMALL)
    assert pixels.missing(ids) == {ids[2], ids[5]}
    assert pixels.ensure(ids, files, workers=1) == 2
    assert np.array_equal(pixels.gather(ids), np.stack([load_pixels(file, SMALL) for file in files]))
    assert find_damaged(stored) == []


def test_a_row_taken_out_is_not_given_to_another_image(root, cache_facts, originals):
    """A running reader may still have its place."""
    ids, files = originals
    reader = PixelStore(root, SMALL)
    places = reader.locate(ids[2:3])
    flip(root, ids[2])
    before = reader.read(places)
    remove_damaged_images(by_key(list_stored(root.parent, cache_facts))[SMALL.key], [ids[2]])
    PixelStore(root, SMALL).ensure(ids, files, workers=1)
    assert np.array_equal(reader.read(places), before)


def test_unreadable_segments_are_damage(root, cache_facts, monkeypatch):
    def fail(*_: object) -> bytes:
        raise OSError("input/output error")

    monkeypatch.setattr("knee_siglip.core.processes.available_cores", lambda: 1)
    monkeypatch.setattr(segments.os, "pread", fail)
    assert len(find_damaged(by_key(list_stored(root.parent, cache_facts))[SMALL.key])) == IMAGES


def open_features(root: Path, transform: Transform, tower: str = "tower") -> FeatureStore:
    return FeatureStore(root.parent / "features", {"transform_key": transform.key, "tower": tower}, WIDTH)


def features(ids: list[str]) -> list[np.ndarray]:
    """One block of numbers that only depend on the ids."""
    return [np.array([[int(image_id[:4], 16) + column for column in range(WIDTH)] for image_id in ids], np.float32)]


@pytest.fixture
def small_features(root, originals) -> FeatureStore:
    """All images' features with the small transform, which cache.json names."""
    store = open_features(root, SMALL)
    store.ensure(originals[0], features)
    return store


def test_features_are_shelves_too(root, cache_facts, small_features, originals):
    large = open_features(root, LARGE)
    large.ensure(originals[0][:3], features)
    found = by_key(list_stored(root.parent, cache_facts))
    small, other = found[small_features.folder.name], found[large.folder.name]
    assert (small.kind, small.layout, small.images) == ("features", feature_rows(WIDTH), IMAGES)
    assert (small.current, small.usable, small.lost) == (True, True, 0)
    assert (other.current, other.usable, other.images) == (False, True, 3)
    assert small.facts == {"transform_key": SMALL.key, "tower": "tower", "feature_version": 1, "width": WIDTH}


def test_features_without_a_transform_are_current_for_none(root, tmp_path, originals):
    FeatureStore(root.parent / "features", {}, WIDTH).ensure(originals[0], features)
    assert not any(stored.current for stored in list_stored(root.parent, tmp_path / "none.json"))


def test_unused_features_go_and_those_of_the_current_transform_stay(root, cache_facts, small_features, originals):
    large = open_features(root, LARGE)
    large.ensure(originals[0], features)
    for store in (small_features, large):
        set_last_use(store.folder / "features.json", 20)
    found = list_stored(root.parent, cache_facts)
    assert [stored.folder for stored in choose_prunable(found, 10, False)] == [large.folder]
    assert choose_prunable(found, 30, False) == []
    assert {stored.folder for stored in choose_prunable(found, None, True)} == {large.folder, root / LARGE.key}


def test_features_of_another_version_go_by_themselves(root, cache_facts, small_features, originals, monkeypatch):
    monkeypatch.setattr(feature_store, "FEATURE_VERSION", 0)
    former = open_features(root, SMALL)
    former.ensure(originals[0], features)
    monkeypatch.undo()
    (stored,) = choose_prunable(list_stored(root.parent, cache_facts), None, False)
    assert (stored.folder, stored.usable, stored.current) == (former.folder, False, False)
    remove_stored(stored)
    assert former.folder.name not in by_key(list_stored(root.parent, cache_facts))
    assert open_features(root, SMALL).missing(originals[0]) == set()


def test_flipped_bits_of_features_are_found_and_mended_by_the_next_run(root, cache_facts, small_features, originals):
    ids = originals[0]
    flip_row(small_features, ids[3])
    stored = by_key(list_stored(root.parent, cache_facts))[small_features.folder.name]
    assert find_damaged(stored) == [ids[3]]
    remove_damaged_images(stored, [ids[3]])
    store = open_features(root, SMALL)
    assert store.ensure(ids, features) == 1
    assert np.array_equal(store.gather(ids), features(ids)[0])
    assert find_damaged(stored) == []
