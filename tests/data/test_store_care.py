import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.data import segments
from knee_siglip.data.store import PixelStore
from knee_siglip.data.store_care import (
    Shelf,
    choose_prunable,
    find_damaged,
    remove_damaged,
    remove_shelf,
    shelves,
)
from knee_siglip.data.store_filling import locked
from knee_siglip.data.transform import Transform, load_pixels
from knee_siglip.errors import UsageError, UserError

SMALL, LARGE = Transform(28, "pad", "local"), Transform(56, "pad", "local")
IMAGES = 8


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


def by_key(found: list[Shelf]) -> dict[str, Shelf]:
    return {shelf.folder.name: shelf for shelf in found}


def age(root: Path, transform: Transform, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(root / transform.key / "transform.json", (then, then))


def make_old_version(root: Path) -> Path:
    """As a former knee-siglip left it: segments of another format, another version."""
    folder = root / "0123456789abcdef"
    folder.mkdir()
    (folder / "transform.json").write_text(json.dumps({"version": 0, "image_size": 28}))
    (folder / "old.npy").write_bytes(bytes(5000))
    (folder / "old.ids").write_text("a b\n")
    return folder


def test_shelves_tell_what_is_there(root, cache_facts):
    found = by_key(shelves(root, cache_facts))
    small, large = found[SMALL.key], found[LARGE.key]
    assert (small.images, small.segments, small.image_size, small.current) == (IMAGES, 1, 28, True)
    assert (large.images, large.image_size, large.current, large.usable) == (IMAGES, 56, False, True)
    assert large.transform == LARGE.to_dict()
    assert large.bytes >= IMAGES * 56 * 56


def test_what_was_used_last_comes_first(root, cache_facts, originals):
    age(root, SMALL, 1)
    assert [shelf.image_size for shelf in shelves(root, cache_facts)] == [56, 28]
    PixelStore(root, SMALL).ensure(*originals)
    assert [shelf.image_size for shelf in shelves(root, cache_facts)] == [28, 56]


def test_no_store_no_shelves(tmp_path):
    assert shelves(tmp_path / "nothing", tmp_path / "cache.json") == []


def test_a_foreign_folder_is_shown_without_images(root, cache_facts):
    make_old_version(root)
    shelf = by_key(shelves(root, cache_facts))["0123456789abcdef"]
    assert (shelf.images, shelf.usable) == (0, False)


def test_only_other_versions_go_by_themselves(root, cache_facts):
    old = make_old_version(root)
    assert [shelf.folder for shelf in choose_prunable(shelves(root, cache_facts), None, False)] == [old]


def test_what_was_not_used_for_long_goes_but_never_the_current(root, cache_facts):
    age(root, SMALL, 100)
    age(root, LARGE, 20)
    found = shelves(root, cache_facts)
    assert [shelf.image_size for shelf in choose_prunable(found, 10, False)] == [56]
    assert choose_prunable(found, 30, False) == []


def test_all_but_current_needs_a_current_one(root, cache_facts, tmp_path):
    assert [shelf.image_size for shelf in choose_prunable(shelves(root, cache_facts), None, True)] == [56]
    with pytest.raises(UsageError, match="would take everything"):
        choose_prunable(shelves(root, tmp_path / "none.json"), None, True)


def test_removed_pixels_are_gone_for_show_but_not_for_those_who_hold_them(root, cache_facts, originals):
    reader = PixelStore(root, LARGE)
    before = reader.gather(originals[0])
    remove_shelf(by_key(shelves(root, cache_facts))[LARGE.key])
    assert list(by_key(shelves(root, cache_facts))) == [SMALL.key]
    assert np.array_equal(reader.gather(originals[0]), before)
    assert PixelStore(root, LARGE).ensure(*originals, workers=1).decoded == IMAGES


def test_a_shelf_that_is_being_filled_is_not_removed(root, cache_facts):
    shelf = by_key(shelves(root, cache_facts))[LARGE.key]
    with locked(shelf.folder), pytest.raises(UserError, match="another process is filling"):
        remove_shelf(shelf)
    assert by_key(shelves(root, cache_facts))[LARGE.key] == shelf


def flip(root: Path, image_id: str) -> None:
    """Change one bit of an image's stored pixels."""
    store = PixelStore(root, SMALL)
    number, row = store.locate([image_id])[0]
    with store.segments[number].file.open("r+b") as file:
        file.seek(row * 28 * 28 + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_undamaged_pixels_are_found_undamaged(root, cache_facts):
    assert [find_damaged(shelf) for shelf in shelves(root, cache_facts)] == [[], []]


def test_flipped_bits_are_found_and_mended_by_the_next_run(root, cache_facts, originals):
    ids, files = originals
    for number in (2, 5):
        flip(root, ids[number])
    shelf = by_key(shelves(root, cache_facts))[SMALL.key]
    damaged = find_damaged(shelf)
    assert damaged == sorted([ids[2], ids[5]])
    remove_damaged(shelf, damaged)
    pixels = PixelStore(root, SMALL)
    assert pixels.missing(ids) == {ids[2], ids[5]}
    assert pixels.ensure(ids, files, workers=1).decoded == 2
    assert np.array_equal(pixels.gather(ids), np.stack([load_pixels(file, SMALL) for file in files]))
    assert find_damaged(shelf) == []


def test_a_row_taken_out_is_not_given_to_another_image(root, cache_facts, originals):
    """A running reader may still have its place."""
    ids, files = originals
    reader = PixelStore(root, SMALL)
    places = reader.locate(ids[2:3])
    flip(root, ids[2])
    before = reader.read(places)
    remove_damaged(by_key(shelves(root, cache_facts))[SMALL.key], [ids[2]])
    PixelStore(root, SMALL).ensure(ids, files, workers=1)
    assert np.array_equal(reader.read(places), before)


def test_unreadable_segments_are_damage(root, cache_facts, monkeypatch):
    def fail(*_: object) -> bytes:
        raise OSError("input/output error")

    monkeypatch.setattr("knee_siglip.data.store_care.available_cores", lambda: 1)
    monkeypatch.setattr(segments.os, "pread", fail)
    assert len(find_damaged(by_key(shelves(root, cache_facts))[SMALL.key])) == IMAGES
