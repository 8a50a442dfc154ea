"""Several machines fill one store at once: two processes, one killed, one rerun, and the store that merges them."""

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.store import filling
from knee_siglip.store.pixels import PixelStore, build_cache, fill_shard
from knee_siglip.tables.shards import Shard

TRANSFORM = Transform(28, "pad", "local")
IMAGES = 24

fork = multiprocessing.get_context("fork")


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(filling, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(filling, "IMAGES_PER_CHUNK", 2)
    monkeypatch.setattr("knee_siglip.core.processes.available_cores", lambda: 1)
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 50)).astype(np.uint8)).save(file)
    ids = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return pd.DataFrame({"image_id": ids, "image_file": [str(file) for file in files]})


def open_store(tmp_path: Path) -> PixelStore:
    return PixelStore(tmp_path / "store" / "pixels", TRANSFORM)


def build(manifest: pd.DataFrame, folder: Path) -> list[bytes]:
    files = folder / "index.parquet", folder / "cache.json"
    build_cache(manifest, TRANSFORM, *files)
    return [file.read_bytes() for file in files]


def assert_whole(store: PixelStore, manifest: pd.DataFrame) -> None:
    expected = np.stack([load_pixels(Path(file), TRANSFORM) for file in manifest["image_file"]])
    assert np.array_equal(store.gather(manifest["image_id"].tolist()), expected)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> np.ndarray:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(filling, "_decode_checked", decode)


def test_two_shards_at_once_one_killed_and_rerun_make_the_store_of_one_process(manifest, tmp_path, monkeypatch):
    real, both = filling._decode_checked, fork.Barrier(2, timeout=60)

    def work(number: int, fatal: int | None) -> None:
        decoded = 0

        def decode(image_id: str, file: Path) -> np.ndarray:
            nonlocal decoded
            if not decoded:
                both.wait()  # both shards are filling, each under its own lock
            decoded += 1
            if decoded == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(image_id, file)

        filling._decode_checked = decode
        os._exit(fill_shard(manifest, TRANSFORM, Shard(number, 2)))

    workers = [fork.Process(target=work, args=(1, None)), fork.Process(target=work, args=(2, 7))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [IMAGES // 2, -signal.SIGKILL]
    assert fill_shard(manifest, TRANSFORM, Shard(2, 2)) == IMAGES // 2 - 6
    forbid_decoding(monkeypatch)
    merged = build(manifest, tmp_path / "merged")
    assert_whole(open_store(tmp_path), manifest)
    assert {file.suffix or file.name for file in open_store(tmp_path).folder.iterdir()} == {
        ".ids",
        ".json",
        ".lock",
        ".pixels",
    }
    monkeypatch.undo()
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "other"))
    assert build(manifest, tmp_path / "alone") == merged


def test_what_no_shard_did_is_decoded_by_the_merging_run(manifest, tmp_path):
    fill_shard(manifest, TRANSFORM, Shard(1, 3))
    store = open_store(tmp_path)
    assert store.ensure(manifest["image_id"].tolist(), manifest["image_file"].tolist()) == IMAGES - IMAGES // 3
    assert_whole(store, manifest)


def test_a_merge_killed_between_rows_and_log_loses_nothing(manifest, tmp_path, monkeypatch):
    fill_shard(manifest, TRANSFORM, Shard(1, 1))
    store = open_store(tmp_path)
    (rows,) = store.shard(Shard(1, 1)).folder.glob("*.pixels")
    rows.replace(store.folder / rows.name)
    forbid_decoding(monkeypatch)
    assert store.ensure(manifest["image_id"].tolist(), manifest["image_file"].tolist()) == 0
    assert_whole(store, manifest)


def test_a_shard_decodes_nothing_that_the_store_has(manifest, tmp_path):
    build(manifest, tmp_path)
    assert fill_shard(manifest, TRANSFORM, Shard(1, 1)) == 0
