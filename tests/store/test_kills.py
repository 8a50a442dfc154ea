"""The store under real accidents: processes that are killed, that meet, disks that are full or cannot be written."""

import hashlib
import json
import multiprocessing
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.store import filling
from knee_siglip.store.pixels import PixelStore, build_cache

TRANSFORM = Transform(28, "pad", "local")
IMAGES = 16
SYSTEM_CALLS = {"open", "mkdir", "flock", "write", "pwrite", "flush", "fsync", "rename", "replace", "unlink", "close"}
"""Between two of these the disk stays as it is: a kill at each of them meets every state that a kill can leave."""

fork = multiprocessing.get_context("fork")

Originals = tuple[list[str], list[Path]]
"""Ids and files of as many different images."""


def make_originals(folder: Path, count: int) -> Originals:
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(count)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 50)).astype(np.uint8)).save(file)
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], files


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return make_originals(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture(scope="module")
def many_originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    """More than the small disks hold."""
    return make_originals(tmp_path_factory.mktemp("many"), 300)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small chunks, committed one by one, so that an accident meets every kind of moment."""
    monkeypatch.setattr(filling, "IMAGES_PER_CHUNK", 4)
    monkeypatch.setattr(filling, "COMMIT_SECONDS", -1.0)
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    return tmp_path / "store" / "pixels"


@pytest.fixture
def at_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something happen in each worker before it decodes an image; children are forked with this in place."""

    def happens(event: Callable[[], None]) -> None:
        real = filling._decode_checked

        def decode(image_id: str, file: Path) -> np.ndarray:
            event()
            return real(image_id, file)

        monkeypatch.setattr(filling, "_decode_checked", decode)

    return happens


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = fork.Process(target=quietly, args=(target, *arguments))
    process.start()
    return process


def run(target: Callable[..., None], *arguments: object) -> int | None:
    process = start(target, *arguments)
    process.join()
    return process.exitcode


def quietly(target: Callable[..., None], *arguments: object) -> None:
    """In a child: no progress bars in the test's output; a `UserError` is exit code 3."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        target(*arguments)
    except UserError:
        os._exit(3)


def ensure(root: Path, originals: Originals, workers: int) -> None:
    PixelStore(root, TRANSFORM).ensure(*originals, workers=workers)


def sound_images(root: Path, originals: Originals) -> int:
    """Check every image that the store has against its original; returns how many there are."""
    ids, files = originals
    pixels = PixelStore(root, TRANSFORM)
    missing = pixels.missing(ids)
    known = [(image_id, file) for image_id, file in zip(ids, files, strict=True) if image_id not in missing]
    expected = [load_pixels(file, TRANSFORM) for _, file in known]
    assert np.array_equal(pixels.gather([image_id for image_id, _ in known]), np.reshape(expected, (-1, 28, 28)))
    return len(known)


def make_cache(folder: Path, originals: Originals) -> None:
    ids, files = originals
    manifest = pd.DataFrame({"image_id": ids, "image_file": [str(file) for file in files]})
    build_cache(manifest, TRANSFORM, folder / "index.parquet", folder / "cache.json")


def make_cache_until(call: int | None, counted: Path, folder: Path, originals: Originals) -> None:
    """Make the cache; this process is killed at its `call`-th system call. Writes how many there were if it is not."""
    builder, calls = os.getpid(), 0

    def count(_frame: object, event: str, function: object) -> None:
        nonlocal calls
        calls += event == "c_call" and getattr(function, "__name__", "") in SYSTEM_CALLS
        if calls == call and os.getpid() == builder:  # not in a worker, which inherits this
            os.kill(builder, signal.SIGKILL)

    sys.setprofile(count)
    make_cache(folder, originals)
    sys.setprofile(None)
    counted.write_text(str(calls))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_at_any_moment_ends_in_the_same_pixels_and_index(
    root, originals, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("knee_siglip.core.processes.available_cores", lambda: workers)
    counted = tmp_path / "calls"
    assert run(make_cache_until, None, counted, tmp_path / "undisturbed", originals) == 0
    kept = []
    for call in range(1, int(counted.read_text()) + 1, 3 * workers):
        shutil.rmtree(root)
        assert run(make_cache_until, call, counted, tmp_path / "killed", originals) in (-signal.SIGKILL, 0)
        kept.append(sound_images(root, originals) if root.exists() else 0)
        make_cache(tmp_path / "killed", originals)
        assert sound_images(root, originals) == IMAGES
        for name in ("index.parquet", "cache.json"):
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        names = sorted(file.suffix or file.name for file in (root / TRANSFORM.key).iterdir())
        assert names == [".ids", ".json", ".lock", ".pixels"]
        assert next((root / TRANSFORM.key).glob("*.pixels")).stat().st_size == IMAGES * 28 * 28
    assert len({images for images in kept if 0 < images < IMAGES}) > 3


def test_a_killed_worker_ends_the_build_and_the_next_one_continues(root, originals, at_decoding):
    builder, turns = os.getpid(), fork.Semaphore(IMAGES // 2)

    def die_halfway() -> None:
        if os.getpid() != builder and not turns.acquire(block=False):
            os.kill(os.getpid(), signal.SIGKILL)

    at_decoding(die_halfway)
    assert run(ensure, root, originals, 2) == 3
    done = sound_images(root, originals)
    assert 0 < done < IMAGES
    assert PixelStore(root, TRANSFORM).ensure(*originals, workers=1) == IMAGES - done
    assert sound_images(root, originals) == IMAGES


def test_workers_and_lock_end_with_a_killed_parent(root, originals, at_decoding):
    """The workers hold the end of a pipe, which is closed when the last of them is gone."""
    alive, held_by_workers = os.pipe()
    both_work = fork.Barrier(2, timeout=60)

    def kill_the_builder_and_stay() -> None:
        both_work.wait()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(30)  # longer than the test waits
        os._exit(0)

    at_decoding(kill_the_builder_and_stay)
    builder = start(ensure, root, originals, 2)
    os.close(held_by_workers)
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    with filling.locked(root / TRANSFORM.key):
        assert select.select([alive], [], [], 1)[0], "a worker lives on"
        assert os.read(alive, 1) == b""
    os.close(alive)


def test_builders_of_overlapping_sets_decode_nothing_twice(root, originals):
    ids, files = originals
    decoded, all_started = fork.SimpleQueue(), fork.Barrier(3, timeout=60)

    def build(part: slice) -> None:
        pixels = PixelStore(root, TRANSFORM)
        all_started.wait()
        decoded.put(pixels.ensure(ids[part], files[part], workers=2))

    parts = [slice(0, 10), slice(5, IMAGES), slice(0, IMAGES)]
    builders = [start(build, part) for part in parts]
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert sum(decoded.get() for _ in parts) == IMAGES
    assert sound_images(root, originals) == IMAGES


def test_readers_during_a_build_see_only_whole_images(root, originals, at_decoding):
    """Builder and reader take turns: the reader looks while an image is being decoded and written."""
    begun, may_go_on = fork.Semaphore(0), fork.Semaphore(0)

    def wait_for_the_reader() -> None:
        begun.release()
        may_go_on.acquire()

    at_decoding(wait_for_the_reader)
    builder, seen = start(ensure, root, originals, 1), []
    for _ in range(IMAGES):
        assert begun.acquire(timeout=60)
        may_go_on.release()
        seen.append(sound_images(root, originals))
    builder.join()
    assert builder.exitcode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert sound_images(root, originals) == IMAGES


def test_a_limit_on_file_sizes_is_one_sentence_and_the_next_run_continues(root, many_originals):
    answer = fork.SimpleQueue()

    def build_with_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 28 * 28, resource.RLIM_INFINITY))
        try:
            ensure(root, many_originals, 2)
        except UserError as error:
            answer.put(str(error))

    assert run(build_with_small_files) == 0
    assert answer.get().startswith(f"cannot write the store {root / TRANSFORM.key}: File too large (")
    assert 0 < sound_images(root, many_originals) <= 100
    PixelStore(root, TRANSFORM).ensure(*many_originals)
    assert sound_images(root, many_originals) == len(many_originals[0])


def test_full_and_read_only_disks(many_originals, tmp_path):
    """A real small disk, in a mount namespace of its own."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("needs the right to make a mount namespace")
    ids, files = many_originals
    arguments = [json.dumps(ids), json.dumps([str(file) for file in files]), str(tmp_path)]
    command = [*namespace, sys.executable, str(Path(__file__).with_name("small_disk.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    needed = "(300 images of 28x28 values need 1.3 MB, 0.1 MB are free)"
    assert answers["early"].startswith(f"too little space for the store {tmp_path / TRANSFORM.key} {needed}")
    assert f"cannot write the store {tmp_path / TRANSFORM.key}: No space left on device (" in answers["full"]
    assert "store prune" in answers["full"]
    assert set(answers["left"]) <= {".ids", ".json", ".lock", ".pixels"}
    assert answers["continued"] == len(ids) - 1 - answers["kept"]
    assert answers["read_only_reader"] == 0
    assert "Read-only file system; make the file system writable" in answers["read_only_builder"]
    assert "KNEE_SIGLIP_STORE moves the store" in answers["read_only_builder"]
    expected = np.stack([load_pixels(file, TRANSFORM) for file in files[:-1]])
    assert answers["pixels"] == expected.tobytes().hex()
