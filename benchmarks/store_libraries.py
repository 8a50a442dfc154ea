"""python benchmarks/store_libraries.py [--rows N] [--kills N] [--output FILE]

The pixel store's segments against LMDB and zarr (pip install lmdb zarr): building a store of N grey images of 64 px,
opening it, reading batches of 64 shuffled rows, and what a reader finds after `kill -9` of the writer.

Every row follows from its number, so that a wrong one is noticed. Builders commit every `BLOCK` rows.
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from claims import Claim, conclude

from knee_siglip.store.filling import add_rows, locked
from knee_siglip.store.rows import RowStore
from knee_siglip.store.segments import pixel_rows

SIDE, BATCH, BLOCK, BATCHES = 64, 64, 1024, 500
ROW_BYTES = SIDE * SIDE
CHECKED = 20_000
"""Rows compared after the build."""


def image_id(number: int) -> str:
    """The id of row `number`, as a sha256."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def image(number: int) -> np.ndarray:
    """uint8 (SIDE, SIDE), the same for the same number."""
    digest = np.frombuffer(hashlib.sha256(str(number).encode()).digest(), dtype=np.uint8)
    return np.tile(digest, ROW_BYTES // len(digest)).reshape(SIDE, SIDE)


class Store(Protocol):
    """One way to keep rows by id."""

    def build(self, count: int) -> None:
        """Add rows 0 ... count-1, committed in blocks."""

    def open(self) -> Callable[[list[str]], np.ndarray]:
        """What a training does first; returns the function that gathers (B, SIDE, SIDE) by ids."""

    def ids(self) -> list[str]:
        """All ids that a reader would be given."""


class Segments:
    """This project's store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, pixel_rows(SIDE)

    def _store(self) -> RowStore:
        return RowStore(self.folder, "pixels", self.layout, {})

    def build(self, count: int) -> None:
        """Through the public way in: hashed rows, log, fsync."""
        rows = ((image_id(n), hashlib.sha256(image(n).data).hexdigest(), image(n)) for n in range(count))
        with locked(self.folder):
            add_rows(self.folder, [], self.layout, count, rows)

    def open(self) -> Callable[[list[str]], np.ndarray]:
        """Reads the logs, maps the segments."""
        return self._store().gather

    def ids(self) -> list[str]:
        """Those in the logs."""
        return self._store().image_ids


class Lmdb:
    """A B+ tree in one memory-mapped file, by Symas; Python's `lmdb`."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        folder.mkdir(parents=True, exist_ok=True)
        self.environment: Any = lmdb.open(str(folder), map_size=2**34, readahead=False)

    def build(self, count: int) -> None:
        """A transaction for each block."""
        for numbers in blocks(count):
            with self.environment.begin(write=True) as transaction:
                for n in numbers:
                    transaction.put(image_id(n).encode(), image(n).tobytes())

    def open(self) -> Callable[[list[str]], np.ndarray]:
        """Nothing to read: the tree is searched for each row."""
        transaction = self.environment.begin(buffers=True)

        def gather(ids: list[str]) -> np.ndarray:
            found = np.empty((len(ids), SIDE, SIDE), dtype=np.uint8)
            for place, name in enumerate(ids):
                found[place] = np.frombuffer(transaction.get(name.encode()), dtype=np.uint8).reshape(SIDE, SIDE)
            return found

        return gather

    def ids(self) -> list[str]:
        """All keys."""
        with self.environment.begin() as transaction:
            return [key.decode() for key in transaction.cursor().iternext(values=False)]


class Zarr:
    """A chunked array of pixels and one of ids, uncompressed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, count: int) -> None:
        """A chunk for each block, pixels first."""
        import zarr

        options: dict[str, Any] = {"compressors": None, "overwrite": True}
        pixels = zarr.create_array(
            str(self.folder / "pixels"), shape=(count, SIDE, SIDE), chunks=(BLOCK, SIDE, SIDE), dtype="u1", **options
        )
        ids = zarr.create_array(str(self.folder / "ids"), shape=(count, 64), chunks=(BLOCK, 64), dtype="u1", **options)
        for numbers in blocks(count):
            chosen = slice(numbers[0], numbers[-1] + 1)
            pixels[chosen] = np.stack([image(n) for n in numbers])
            ids[chosen] = np.stack([np.frombuffer(image_id(n).encode(), dtype=np.uint8) for n in numbers])

    def open(self) -> Callable[[list[str]], np.ndarray]:
        """Reads all ids."""
        import zarr

        pixels = zarr.open_array(str(self.folder / "pixels"), mode="r")
        place = {name: number for number, name in enumerate(self._all_ids())}
        return lambda ids: np.asarray(pixels.oindex[[place[name] for name in ids]])

    def ids(self) -> list[str]:
        """Those that are not zeros."""
        return [name for name in self._all_ids() if name.strip("\0")]

    def _all_ids(self) -> list[str]:
        import zarr

        found = np.asarray(zarr.open_array(str(self.folder / "ids"), mode="r")[:])
        return [row.tobytes().decode() for row in found]


WAYS: dict[str, Callable[[Path], Store]] = {"segments": Segments, "lmdb": Lmdb, "zarr": Zarr}


def blocks(count: int) -> Iterator[range]:
    """Row numbers, `BLOCK` at a time."""
    return (range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def measure(name: str, folder: Path, count: int) -> dict[str, float]:
    """Seconds to build and open, milliseconds for a batch (median), bytes on the disk a row, wrong rows."""
    store, rng = WAYS[name](folder), np.random.default_rng(0)
    started = time.perf_counter()
    store.build(count)
    built = time.perf_counter() - started
    started = time.perf_counter()
    gather = store.open()
    gather([image_id(0)])
    opened = time.perf_counter() - started
    times = []
    for _ in range(BATCHES):
        ids = [image_id(n) for n in rng.integers(count, size=BATCH)]
        started = time.perf_counter()
        gather(ids)
        times.append(time.perf_counter() - started)
    chosen = rng.choice(count, min(count, CHECKED), replace=False).tolist()
    size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    return {
        "build_seconds": built,
        "open_seconds": opened,
        "batch_milliseconds": float(np.median(times)) * 1000,
        "bytes_per_row": size / count,
        "wrong_rows": wrong_rows(gather, chosen),
    }


def wrong_rows(gather: Callable[[list[str]], np.ndarray], numbers: list[int]) -> int:
    """Rows that are not what their number says."""
    wrong = 0
    for start in range(0, len(numbers), BATCH):
        part = numbers[start : start + BATCH]
        found = gather([image_id(n) for n in part])
        wrong += sum(not np.array_equal(row, image(n)) for row, n in zip(found, part, strict=True))
    return wrong


def kill_builders(name: str, root: Path, count: int, kills: int) -> dict[str, int]:
    """Kill builders at random moments: rows left in all, wrong ones among them, stores that could not be opened."""
    number_of = {image_id(n): n for n in range(count)}
    rng = np.random.default_rng(1)
    result = {"kills": kills, "rows_left": 0, "wrong_rows": 0, "unreadable": 0}
    for kill in range(kills):
        folder = root / f"{name}-{kill}"
        builder = subprocess.Popen([sys.executable, __file__, "--build", name, str(folder), "--rows", str(count)])
        while not folder.exists() or not any(folder.iterdir()):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        try:
            store = WAYS[name](folder)
            numbers = [number_of[found] for found in store.ids()]
            result["rows_left"] += len(numbers)
            result["wrong_rows"] += wrong_rows(store.open(), numbers)
        except Exception as error:  # whatever a library raises: a reader could not go on
            print(f"{name}, kill {kill}: {type(error).__name__}: {error}")
            result["unreadable"] += 1
    return result


def main() -> None:
    """Measure all, or be a builder that will be killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--build", nargs=2, metavar=("WAY", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.build:
        WAYS[arguments.build[0]](Path(arguments.build[1])).build(arguments.rows)
        return
    facts: dict[str, Any] = {"rows": arguments.rows, "side": SIDE}
    with tempfile.TemporaryDirectory() as root:
        for name in WAYS:
            facts[name] = measure(name, Path(root, name), arguments.rows)
            facts[name]["after_kills"] = kill_builders(name, Path(root), arguments.rows, arguments.kills)
            print(name, facts[name])
    ours, others = facts["segments"], [facts["lmdb"], facts["zarr"]]
    quickest = {key: min(other[key] for other in others) for key in ("build_seconds", "batch_milliseconds")}
    claims = [
        Claim(
            "batch of 64 / the quicker library", ours["batch_milliseconds"] / quickest["batch_milliseconds"], "<=", 1.1
        ),
        Claim("build / the quicker library", ours["build_seconds"] / quickest["build_seconds"], "<=", 1.5),
        Claim("wrong rows after kills", ours["after_kills"]["wrong_rows"], "<=", 0),
        Claim("stores that kills left unreadable", ours["after_kills"]["unreadable"], "<=", 0),
    ]
    conclude(claims, facts, arguments.output, "numpy", "lmdb", "zarr")


if __name__ == "__main__":
    main()
