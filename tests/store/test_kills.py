"""The store under real accidents: processes that are killed, that meet, disks that are full or cannot be written."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store import filling as store_filling
from knee_siglip.store.pixels import PixelStore, build_cache
from processes import holds_files

TRANSFORM = Transform(28, "pad", "local")
IMAGES = 300
KILLS = 20

fork = multiprocessing.get_context("fork")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes through /proc")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> tuple[list[str], list[Path]]:
    """Ids and files of 300 different images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(IMAGES)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (90, 110)).astype(np.uint8)).save(file)
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], files


@pytest.fixture(scope="module")
def expected(originals) -> np.ndarray:
    from knee_siglip.imaging.fit.transform import load_pixels

    return np.stack([load_pixels(file, TRANSFORM) for file in originals[1]])


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Small chunks and frequent commits, so that a kill meets every kind of moment; two workers."""
    monkeypatch.setattr(store_filling, "IMAGES_PER_CHUNK", 4)
    monkeypatch.setattr(store_filling, "COMMIT_SECONDS", 0.005)
    monkeypatch.setattr("knee_siglip.store.pixels.available_cores", lambda: 2)
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    return tmp_path / "store" / "pixels"


def run(target, *arguments) -> multiprocessing.Process:
    process = fork.Process(target=quietly, args=(target, *arguments))
    process.start()
    return process


def quietly(target, *arguments) -> None:
    """In a child: no progress bars in the test's output; a `UserError` is exit code 3."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        target(*arguments)
    except UserError:
        os._exit(3)


def make_cache(folder: Path, ids: list[str], files: list[Path]) -> None:
    manifest = pd.DataFrame({"image_id": ids, "image_file": [str(file) for file in files]})
    build_cache(manifest, TRANSFORM, folder / "index.parquet", folder / "cache.json")


def ensure(root: Path, ids: list[str], files: list[Path], decoded) -> None:
    decoded.put(PixelStore(root, TRANSFORM).ensure(ids, files).decoded)


def is_sound(root: Path, ids: list[str], expected: np.ndarray) -> int:
    """Check every image that the store has against the truth; returns how many there are."""
    pixels = PixelStore(root, TRANSFORM)
    rows = [row for row, image_id in enumerate(ids) if image_id not in pixels.missing(ids)]
    assert np.array_equal(pixels.gather([ids[row] for row in rows]), expected[rows])
    return len(rows)


def test_builds_killed_at_random_moments_end_in_the_same_pixels_and_index(root, originals, expected, tmp_path):
    ids, files = originals
    started = time.monotonic()
    make_cache(tmp_path / "undisturbed", ids, files)
    duration = time.monotonic() - started
    shutil.rmtree(root)
    rng, met_halfway = np.random.default_rng(7), 0
    for _ in range(KILLS):
        process = run(make_cache, tmp_path / "killed", ids, files)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        process.join()
        done = is_sound(root, ids, expected)
        met_halfway += 0 < done < IMAGES
        if done == IMAGES:
            shutil.rmtree(root)
    assert met_halfway > 0
    make_cache(tmp_path / "killed", ids, files)
    assert is_sound(root, ids, expected) == IMAGES
    for name in ("index.parquet", "cache.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    names = sorted(file.suffix or file.name for file in (root / TRANSFORM.key).iterdir())
    assert names == [".ids", ".json", ".lock", ".pixels"]
    assert next((root / TRANSFORM.key).glob("*.pixels")).stat().st_size == IMAGES * 28 * 28


@needs_proc
def test_a_killed_worker_ends_the_build_and_the_next_one_continues(root, originals, expected, monkeypatch):
    ids, files = originals
    slow_down(monkeypatch)
    process = run(ensure, root, ids, files, fork.SimpleQueue())
    os.kill(wait_for_workers(process.pid)[0], signal.SIGKILL)
    process.join(30)
    assert process.exitcode == 3
    done = is_sound(root, ids, expected)
    assert PixelStore(root, TRANSFORM).ensure(ids, files).decoded == IMAGES - done
    assert is_sound(root, ids, expected) == IMAGES


@needs_proc
def test_workers_and_lock_end_with_a_killed_parent(root, originals, monkeypatch):
    slow_down(monkeypatch)
    process = run(ensure, root, *originals, fork.SimpleQueue())
    workers = wait_for_workers(process.pid)
    process.kill()
    process.join()
    with store_filling.locked(root / TRANSFORM.key):
        assert not [worker for worker in workers if holds_files(worker)]


def test_two_builders_of_overlapping_sets_decode_nothing_twice(root, originals, expected):
    ids, files = originals
    decoded = fork.SimpleQueue()
    parts = [slice(0, 200), slice(100, IMAGES), slice(0, IMAGES)]
    processes = [run(ensure, root, ids[part], files[part], decoded) for part in parts]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(decoded.get() for _ in parts) == IMAGES
    assert is_sound(root, ids, expected) == IMAGES


def test_readers_during_a_build_see_only_whole_images(root, originals, expected):
    ids, files = originals
    process = run(ensure, root, ids, files, fork.SimpleQueue())
    seen = set()
    while process.is_alive():
        seen.add(is_sound(root, ids, expected))
    process.join()
    assert process.exitcode == 0
    assert is_sound(root, ids, expected) == IMAGES
    assert len(seen) > 1


def test_a_limit_on_file_sizes_is_one_sentence_and_the_next_run_continues(root, originals, expected):
    ids, files = originals
    answer = fork.SimpleQueue()
    process = run(build_with_small_files, root, ids, files, answer)
    process.join(60)
    assert answer.get().startswith(f"cannot write the store {root / TRANSFORM.key}: File too large (")
    assert 0 < is_sound(root, ids, expected) <= 100
    PixelStore(root, TRANSFORM).ensure(ids, files)
    assert is_sound(root, ids, expected) == IMAGES


def build_with_small_files(root: Path, ids: list[str], files: list[Path], answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 28 * 28, resource.RLIM_INFINITY))
    try:
        PixelStore(root, TRANSFORM).ensure(ids, files)
    except UserError as error:
        answer.put(str(error))


SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
from knee_siglip.store import filling as store_filling
from knee_siglip.store.pixels import PixelStore
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.core.errors import UserError

ids, files, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
transform, required = Transform(28, "pad", "local"), store_filling.require_space
mount = lambda options: subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
store_filling.COMMIT_SECONDS = 0.005

def attempt(ids=ids, files=files):
    try:
        return PixelStore(folder, transform).ensure(ids, files, workers=2).decoded
    except UserError as error:
        return str(error)

mount("size=100k")
answers = {"early": attempt()}
store_filling.require_space = lambda *_: None
answers["full"] = attempt()
answers["left"] = sorted({file.suffix or file.name for file in (folder / transform.key).iterdir()})
mount("remount,size=10m")
done = PixelStore(folder, transform)
answers["kept"] = len(done.image_ids)
answers["continued"] = attempt(ids[:-1], files[:-1])
mount("remount,ro")
answers["read_only_reader"] = attempt(ids[:-1], files[:-1])
answers["read_only_builder"] = attempt()
done.refresh()
answers["pixels"] = done.gather(ids[:-1]).tobytes().hex()
print(json.dumps(answers))
"""


def test_full_and_read_only_disks(originals, expected, tmp_path):
    """A real small disk, in a mount namespace of its own."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("needs the right to make a mount namespace")
    arguments = [json.dumps(originals[0]), json.dumps([str(file) for file in originals[1]]), str(tmp_path)]
    done = subprocess.run(
        [*namespace, sys.executable, "-c", SMALL_DISK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    needed = f"({IMAGES} images of 28x28 values need 1.3 MB, 0.1 MB are free)"
    assert answers["early"].startswith(f"too little space for the store {tmp_path / TRANSFORM.key} {needed}")
    assert f"cannot write the store {tmp_path / TRANSFORM.key}: No space left on device (" in answers["full"]
    assert "store prune" in answers["full"]
    assert set(answers["left"]) <= {".ids", ".json", ".lock", ".pixels"}
    assert answers["continued"] == IMAGES - 1 - answers["kept"]
    assert answers["read_only_reader"] == 0
    assert "Read-only file system; make it writable" in answers["read_only_builder"]
    assert answers["pixels"] == expected[:-1].tobytes().hex()


def slow_down(monkeypatch) -> None:
    """Builds long enough to be hit; children are forked with this in place."""
    real = store_filling._decode_checked

    def decode(image_id: str, file: Path) -> np.ndarray:
        time.sleep(0.01)
        return real(image_id, file)

    monkeypatch.setattr(store_filling, "_decode_checked", decode)


def wait_for_workers(parent: int | None) -> list[int]:
    """The parent's two workers, once they are there and have had time to begin."""
    workers: list[int] = []
    deadline = time.monotonic() + 20
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        time.sleep(0.2)
    return workers
