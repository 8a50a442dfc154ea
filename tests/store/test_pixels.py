"""Pixels that are decoded once: what is in the store, what is missing, and what damage costs."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.store import filling, segments
from knee_siglip.store.pixels import PixelStore, build_cache, open_pixels

TRANSFORM = Transform(28, "pad", "local")
IMAGES = 12


@pytest.fixture
def originals(tmp_path: Path) -> tuple[list[str], list[Path]]:
    """Ids and files of 12 different images."""
    rng = np.random.default_rng(0)
    files = [tmp_path / "images" / f"{number}.png" for number in range(IMAGES)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        Image.fromarray(rng.integers(0, 256, (40, 30 + number)).astype(np.uint8)).save(file)
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store" / "pixels"


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of three images."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3 * 28 * 28)


class FailingCall:
    """`os.pwrite` or `os.fsync` as on a disk that is full at the given call."""

    def __init__(self, real: Callable[..., int | None], failing: int) -> None:
        self.real, self.failing, self.calls = real, failing, 0

    def __call__(self, *arguments: object) -> int | None:
        self.calls += 1
        if self.calls == self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*arguments)


def expected(files: list[Path], transform: Transform = TRANSFORM) -> np.ndarray:
    return np.stack([load_pixels(file, transform) for file in files])


def remove(files: list[Path]) -> None:
    """Whatever still wants to decode one of them fails."""
    for file in files:
        file.unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_are_those_of_the_images(root, originals, workers):
    ids, files = originals
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.ensure(ids, files, workers=workers) == IMAGES
    assert np.array_equal(pixels.gather(ids), expected(files))


def test_gather_keeps_the_order_and_repeats(root, originals, small_segments):
    ids, files = originals
    pixels = PixelStore(root, TRANSFORM)
    pixels.ensure(ids, files)
    rows = [11, 0, 5, 5, 2, 11, 1, 9]
    assert np.array_equal(pixels.gather([ids[row] for row in rows]), expected(files)[rows])
    assert pixels.gather([]).shape == (0, 28, 28)


def test_second_ensure_decodes_nothing(root, originals):
    PixelStore(root, TRANSFORM).ensure(*originals)
    remove(originals[1])
    assert PixelStore(root, TRANSFORM).ensure(*originals) == 0


def test_only_new_images_are_decoded_into_the_segment_there_is(root, originals):
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids[:5], files[:5])
    (segment,) = (root / TRANSFORM.key).glob("*.pixels")
    before = segment.read_bytes()
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.ensure(ids, files) == IMAGES - 5
    assert list((root / TRANSFORM.key).glob("*.pixels")) == [segment]
    assert segment.read_bytes()[: len(before)] == before
    assert np.array_equal(pixels.gather(ids), expected(files))


def test_an_image_that_two_rows_name_is_decoded_once(root, originals):
    ids, files = originals
    assert PixelStore(root, TRANSFORM).ensure(ids[:2] * 3, files[:2] * 3) == 2


def test_another_transform_has_its_own_folder_and_leaves_this_one(root, originals):
    ids, files = originals
    other = Transform(56, "pad", "local")
    PixelStore(root, TRANSFORM).ensure(ids, files)
    large = PixelStore(root, other)
    assert large.ensure(ids, files) == IMAGES
    assert np.array_equal(large.gather(ids), expected(files, other))
    remove(files)
    assert PixelStore(root, TRANSFORM).ensure(ids, files) == 0


def damage_by_removing(file: Path) -> None:
    file.unlink()


def damage_by_truncating(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 30)


def damage_by_emptying(file: Path) -> None:
    os.truncate(file, 0)


def damage_by_flipping(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("ending", "damage", "lost"),
    [
        ("pixels", damage_by_removing, 3),
        ("pixels", damage_by_emptying, 3),
        ("pixels", damage_by_truncating, 1),
        ("ids", damage_by_removing, 3),
        ("ids", damage_by_emptying, 3),
        ("ids", damage_by_truncating, 1),
        ("ids", damage_by_flipping, 1),
    ],
)
def test_damage_costs_the_images_it_hit(root, originals, small_segments, ending, damage, lost):
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids, files)
    damage(sorted((root / TRANSFORM.key).glob(f"*.{ending}"))[0])
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.ensure(ids, files) == lost
    assert np.array_equal(pixels.gather(ids), expected(files))
    assert np.array_equal(PixelStore(root, TRANSFORM).gather(ids), expected(files))
    names = [file.stem for file in (root / TRANSFORM.key).glob("*.pixels")]
    assert sorted(names) == sorted(file.stem for file in (root / TRANSFORM.key).glob("*.ids"))


def test_gather_of_what_is_not_there_says_so(root, originals):
    with pytest.raises(UserError, match="lacks 1 images"):
        PixelStore(root, TRANSFORM).gather(originals[0][:1])


def test_remains_of_a_killed_writer_are_no_pixels_and_are_removed(root, originals):
    ids, files = originals
    folder = root / TRANSFORM.key
    folder.mkdir(parents=True)
    (folder / "dead.ids.partial").write_bytes(b"half a log")
    (folder / "orphan.pixels").write_bytes(bytes(2 * 28 * 28))
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.missing(ids) == set(ids)
    pixels.ensure(ids, files)
    assert np.array_equal(pixels.gather(ids), expected(files))
    assert not [file for file in folder.iterdir() if "dead" in file.name or "orphan" in file.name]


def test_images_that_come_one_by_one_fill_the_same_segments(root, originals, small_segments):
    ids, files = originals
    for image_id, file in zip(ids, files, strict=True):
        PixelStore(root, TRANSFORM).ensure([image_id], [file])
    assert len(list((root / TRANSFORM.key).glob("*.pixels"))) == IMAGES // 3
    assert np.array_equal(PixelStore(root, TRANSFORM).gather(ids), expected(files))


def test_readers_places_hold_while_others_add_and_clean(root, originals, small_segments):
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids[:4], files[:4])
    reader = PixelStore(root, TRANSFORM)
    places = reader.locate(ids[:4])
    PixelStore(root, TRANSFORM).ensure(ids, files)
    assert np.array_equal(reader.read(places), expected(files[:4]))
    assert reader.missing(ids) == set(ids[4:])
    reader.refresh()
    assert np.array_equal(reader.gather(ids), expected(files))


def test_slots_of_a_killed_builder_are_used_again(root, originals):
    """Pixels that were written and never committed."""
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids[:2], files[:2])
    (segment,) = (root / TRANSFORM.key).glob("*.pixels")
    with segment.open("ab") as file:
        file.write(b"x" * 50_000)
    pixels = PixelStore(root, TRANSFORM)
    pixels.ensure(ids, files)
    assert segment.stat().st_size == IMAGES * 28 * 28
    assert np.array_equal(pixels.gather(ids), expected(files))


def test_too_little_space_is_said_before_anything_is_decoded(root, originals, monkeypatch):
    ids, files = originals
    remove(files)
    usage = shutil.disk_usage(root.parents[1])._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(UserError, match=r"12 images of 28x28 values need 1\.1 MB, 0\.0 MB are free.*KNEE_SIGLIP_STORE"):
        PixelStore(root, TRANSFORM).ensure(ids, files)


@pytest.mark.parametrize("function", ["pwrite", "fsync"])
@pytest.mark.parametrize("failing", [1, 2, 5])
def test_full_disk_is_one_sentence_and_the_next_run_continues(root, originals, monkeypatch, function, failing):
    ids, files = originals
    monkeypatch.setattr(filling, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(os, function, FailingCall(getattr(os, function), failing))
    with pytest.raises(UserError, match="No space left on device"):
        PixelStore(root, TRANSFORM).ensure(ids, files, workers=1)
    left = PixelStore(root, TRANSFORM).missing(ids)
    assert PixelStore(root, TRANSFORM).ensure(ids, files, workers=1) == len(left)
    assert np.array_equal(PixelStore(root, TRANSFORM).gather(ids), expected(files))


def test_a_part_that_a_filling_disk_took_is_written_on(root, originals, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100], offset))
    pixels = PixelStore(root, TRANSFORM)
    pixels.ensure(*originals, workers=1)
    assert np.array_equal(pixels.gather(originals[0]), expected(originals[1]))


def test_file_systems_without_fsync_of_folders_will_do(root, originals, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert PixelStore(root, TRANSFORM).ensure(*originals, workers=1) == IMAGES


def test_store_that_cannot_be_made_is_one_sentence(tmp_path, originals):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file'}"):
        PixelStore(tmp_path / "file", TRANSFORM).ensure(*originals)


def test_unreadable_images_are_named_and_the_others_kept(root, originals):
    ids, files = originals
    files[3].unlink()
    files[7].write_bytes(b"other bytes")
    with pytest.raises(UserError) as caught:
        PixelStore(root, TRANSFORM).ensure(ids, files)
    assert f"{files[3]}: no such file" in str(caught.value)
    assert f"{files[7]}: has changed since it was validated" in str(caught.value)
    assert "bring the originals or unpack their pixels" in str(caught.value)
    assert PixelStore(root, TRANSFORM).missing(ids) == {ids[3], ids[7]}


def make_manifest(ids: list[str], files: list[Path]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": ids, "image_file": [str(file) for file in files]})


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cache" / "index.parquet", tmp_path / "cache" / "cache.json"


def test_cache_describes_the_pixels_in_manifest_order(originals, cache):
    ids, files = originals
    manifest = make_manifest([*ids, ids[0]], [*files, files[0]])
    build_cache(manifest, TRANSFORM, *cache)
    index, facts = pd.read_parquet(cache[0]), json.loads(cache[1].read_text())
    assert index["image_id"].tolist() == [*ids, ids[0]]
    assert index["pixel_hash"][2] == hashlib.sha256(expected(files)[2].tobytes()).hexdigest()
    assert facts == {
        "image_size": 28,
        "transform": TRANSFORM.to_dict(),
        "transform_key": TRANSFORM.key,
        "rows": IMAGES + 1,
        "images": IMAGES,
    }


def test_cache_files_depend_on_content_alone(originals, cache, tmp_path, monkeypatch):
    """Another folder, another order of work, a store that was filled in two steps: the same bytes."""
    ids, files = originals
    build_cache(make_manifest(ids, files), TRANSFORM, *cache)
    first = [file.read_bytes() for file in cache]
    moved = [file.rename(tmp_path / file.name) for file in files]
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "another"))
    build_cache(make_manifest(ids[6:], moved[6:]), TRANSFORM, *cache)
    build_cache(make_manifest(ids, moved), TRANSFORM, *cache)
    assert [file.read_bytes() for file in cache] == first


def test_open_pixels_indexes_by_manifest_row(originals, cache):
    ids, files = originals
    manifest = make_manifest(ids, files)
    build_cache(manifest, TRANSFORM, *cache)
    pixels = open_pixels(manifest, cache[1])
    assert (len(pixels), pixels.image_size, pixels.transform) == (IMAGES, 28, TRANSFORM)
    rows = np.array([4, 4, 0, 11])
    assert np.array_equal(pixels[rows], expected(files)[rows])


def test_open_pixels_rebuilds_a_wiped_store(originals, cache):
    ids, files = originals
    manifest = make_manifest(ids, files)
    build_cache(manifest, TRANSFORM, *cache)
    for file in (paths.store_root() / "pixels" / TRANSFORM.key).iterdir():
        file.unlink()
    assert np.array_equal(open_pixels(manifest, cache[1])[np.arange(IMAGES)], expected(files))


def test_open_pixels_needs_no_originals_while_the_store_is_whole(originals, cache):
    ids, files = originals
    manifest = make_manifest(ids, files)
    build_cache(manifest, TRANSFORM, *cache)
    pixels = expected(files)
    remove(files)
    assert np.array_equal(open_pixels(manifest, cache[1])[np.arange(IMAGES)], pixels)


def test_open_pixels_before_preprocess_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro preprocess"):
        open_pixels(make_manifest([], []), tmp_path / "cache.json")
