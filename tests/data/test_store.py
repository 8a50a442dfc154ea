import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip import paths
from knee_siglip.data import segments, store
from knee_siglip.data.store import Counts, PixelStore, build_cache, open_pixels
from knee_siglip.data.transform import Transform, load_pixels
from knee_siglip.errors import UserError

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
    monkeypatch.setattr(store, "SEGMENT_BYTES", 3 * 28 * 28)
    monkeypatch.setattr(store, "available_cores", lambda: 1)


def expected(files: list[Path], transform: Transform = TRANSFORM) -> np.ndarray:
    return np.stack([load_pixels(file, transform) for file in files])


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(store, "_decode_checked", fail)
    monkeypatch.setattr(store, "available_cores", lambda: 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_are_those_of_the_images(root, originals, workers):
    ids, files = originals
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.ensure(ids, files, workers=workers) == Counts(IMAGES, decoded=IMAGES)
    assert np.array_equal(pixels.gather(ids), expected(files))


def test_gather_keeps_the_order_and_repeats(root, originals, small_segments):
    ids, files = originals
    pixels = PixelStore(root, TRANSFORM)
    pixels.ensure(ids, files)
    rows = [11, 0, 5, 5, 2, 11, 1, 9]
    assert np.array_equal(pixels.gather([ids[row] for row in rows]), expected(files)[rows])
    assert pixels.gather([]).shape == (0, 28, 28)


def test_second_ensure_decodes_nothing(root, originals, monkeypatch):
    PixelStore(root, TRANSFORM).ensure(*originals)
    forbid_decoding(monkeypatch)
    assert PixelStore(root, TRANSFORM).ensure(*originals).decoded == 0


def test_only_new_images_are_decoded_and_old_segments_stay(root, originals):
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids[:5], files[:5])
    before = {file: file.stat().st_mtime_ns for file in (root / TRANSFORM.key).glob("*.npy")}
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.ensure(ids, files).decoded == IMAGES - 5
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert np.array_equal(pixels.gather(ids), expected(files))


def test_an_image_that_two_rows_name_is_decoded_once(root, originals):
    ids, files = originals
    assert PixelStore(root, TRANSFORM).ensure(ids[:2] * 3, files[:2] * 3) == Counts(2, decoded=2)


def test_another_transform_has_its_own_folder_and_leaves_this_one(root, originals, monkeypatch):
    ids, files = originals
    other = Transform(56, "pad", "local")
    PixelStore(root, TRANSFORM).ensure(ids, files)
    large = PixelStore(root, other)
    assert large.ensure(ids, files).decoded == IMAGES
    assert np.array_equal(large.gather(ids), expected(files, other))
    forbid_decoding(monkeypatch)
    assert PixelStore(root, TRANSFORM).ensure(ids, files).decoded == 0


def damage_by_removing(file: Path) -> None:
    file.unlink()


def damage_by_truncating(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 30)


def damage_by_emptying(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("damage", [damage_by_removing, damage_by_truncating, damage_by_emptying])
@pytest.mark.parametrize("ending", ["npy", "ids"])
def test_damaged_segment_is_decoded_again(root, originals, small_segments, damage, ending):
    ids, files = originals
    PixelStore(root, TRANSFORM).ensure(ids, files)
    damage(sorted((root / TRANSFORM.key).glob(f"*.{ending}"))[0])
    pixels = PixelStore(root, TRANSFORM)
    assert 1 <= pixels.ensure(ids, files).decoded <= 3
    assert np.array_equal(pixels.gather(ids), expected(files))
    names = [file.stem for file in (root / TRANSFORM.key).glob("*.npy")]
    assert sorted(names) == sorted(file.stem for file in (root / TRANSFORM.key).glob("*.ids"))


def test_gather_of_what_is_not_there_says_so(root, originals):
    with pytest.raises(UserError, match="lacks 1 images"):
        PixelStore(root, TRANSFORM).gather(originals[0][:1])


def test_remains_of_a_killed_writer_are_no_pixels_and_are_removed(root, originals):
    ids, files = originals
    folder = root / TRANSFORM.key
    folder.mkdir(parents=True)
    (folder / "dead.npy.tmp").write_bytes(b"half a segment")
    np.save(folder / "orphan.npy", np.zeros((2, 28, 28), dtype=np.uint8))
    pixels = PixelStore(root, TRANSFORM)
    assert pixels.missing(ids) == set(ids)
    pixels.ensure(ids, files)
    assert np.array_equal(pixels.gather(ids), expected(files))
    assert not [file for file in folder.iterdir() if "dead" in file.name or "orphan" in file.name]


def build_until_killed(root: Path, ids: list[str], files: list[Path]) -> None:
    """A process that dies, as by kill -9, in the middle of its third file."""
    written = []

    def die(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:
            os._exit(9)

    store.SEGMENT_BYTES = 3 * 28 * 28
    segments.os.fsync = die
    PixelStore(root, TRANSFORM).ensure(ids, files, workers=1)


def test_killed_build_leaves_only_complete_segments(root, originals):
    ids, files = originals
    process = multiprocessing.get_context("fork").Process(target=build_until_killed, args=(root, ids, files))
    process.start()
    process.join()
    assert process.exitcode == 9
    pixels = PixelStore(root, TRANSFORM)
    left = pixels.missing(ids)
    assert 0 < len(left) < IMAGES
    assert pixels.ensure(ids, files).decoded == len(left)
    assert np.array_equal(pixels.gather(ids), expected(files))
    assert not list((root / TRANSFORM.key).glob("*.tmp"))


def build(root: Path, ids: list[str], files: list[Path], decoded) -> None:
    decoded.put(PixelStore(root, TRANSFORM).ensure(ids, files).decoded)


def test_two_processes_at_once_share_the_work(root, originals):
    ids, files = originals
    context = multiprocessing.get_context("fork")
    decoded = context.SimpleQueue()
    processes = [context.Process(target=build, args=(root, ids, files, decoded)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted([decoded.get(), decoded.get()]) == [0, IMAGES]
    assert np.array_equal(PixelStore(root, TRANSFORM).gather(ids), expected(files))


@pytest.mark.parametrize("failing_write", [1, 2, 3])
def test_full_disk_is_one_sentence_and_leaves_no_part(root, originals, small_segments, monkeypatch, failing_write):
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(segments.os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        PixelStore(root, TRANSFORM).ensure(*originals)
    endings = [file.suffix for file in (root / TRANSFORM.key).iterdir()]
    assert set(endings) <= {".json", ".lock", ""}
    assert PixelStore(root, TRANSFORM).ensure(*originals).decoded == IMAGES


def test_store_that_cannot_be_made_is_one_sentence(tmp_path, originals):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the pixel store"):
        PixelStore(tmp_path / "file", TRANSFORM).ensure(*originals)


def test_unreadable_images_are_named_and_the_others_kept(root, originals):
    ids, files = originals
    files[3].unlink()
    files[7].write_bytes(b"other bytes")
    with pytest.raises(UserError) as caught:
        PixelStore(root, TRANSFORM).ensure(ids, files)
    assert f"{files[3]}: no such file" in str(caught.value)
    assert f"{files[7]}: has changed since it was validated" in str(caught.value)
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
    for file in files:
        file.unlink()
    assert np.array_equal(open_pixels(manifest, cache[1])[np.arange(IMAGES)], pixels)


def test_open_pixels_before_preprocess_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro preprocess"):
        open_pixels(make_manifest([], []), tmp_path / "cache.json")
