"""python benchmarks/slow_disk.py [--latency MS] [--batches N] [--output FILE]     (a minute)

Are rows of the store read at once where a disk is slow to answer? A file system in user space answers each request for
a store of 224 px rows after `--latency` milliseconds, as a disk in a network may, and several of them at the same time.
Shuffled batches of 64 rows that nobody has read yet are read through the store as a training reads them, and row by row
through the same memory maps. Reported beside it: a batch that is in memory.

Linux; needs libfuse (Debian: `apt install fuse3`), the right to mount, and `pip install mfusepy`.
Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from claims import Claim, conclude

from knee_siglip.core import paths
from knee_siglip.store.filling import add_rows
from knee_siglip.store.rows import CachedRows, RowStore
from knee_siglip.store.segments import pixel_rows

SIZE, BATCH = 224, 64


class PixelRows(RowStore):
    """Noise in place of images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, paths.PIXELS, pixel_rows(SIZE), {})


def make_store(folder: Path, count: int) -> list[str]:
    """A store of `count` rows; their ids."""
    folder.mkdir()
    store, generator = PixelRows(folder), np.random.default_rng(0)
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]

    def rows() -> Iterator[tuple[str, str, np.ndarray]]:
        for image_id in ids:
            row = generator.integers(256, size=(SIZE, SIZE), dtype=np.uint8)
            yield image_id, hashlib.sha256(row.data).hexdigest(), row

    add_rows(folder, store.segments, store.layout, count, rows())
    return ids


def serve(folder: Path, mount: Path, seconds: float) -> None:
    """Show `folder` at `mount`, read-only; each read is answered after this time. Returns when it is unmounted."""
    import mfusepy

    class SlowFolder(mfusepy.Operations):
        use_ns = True

        def getattr(self, path: str, _fh: int | None = None) -> dict[str, int]:
            try:
                status = os.lstat(f"{folder}{path}")
            except OSError as error:
                raise mfusepy.FuseOSError(error.errno) from None
            return {name: getattr(status, name) for name in ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink")}

        def readdir(self, path: str, _fh: int) -> list[str]:
            return [".", "..", *(file.name for file in Path(f"{folder}{path}").iterdir())]

        def open(self, path: str, _flags: int) -> int:
            return os.open(f"{folder}{path}", os.O_RDONLY)

        def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
            time.sleep(seconds)
            return os.pread(fh, size, offset)

        def release(self, _path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(SlowFolder(), str(mount), foreground=True, ro=True)


@contextmanager
def slow_copy(folder: Path, mount: Path, latency: float) -> Iterator[None]:
    """`folder` at `mount`, slow to answer."""
    mount.mkdir()
    server = subprocess.Popen([sys.executable, __file__, "--serve", folder, mount, "--latency", str(latency)])
    try:
        while not mount.is_mount():
            if server.poll() is not None:
                sys.exit("error: cannot mount; this benchmark needs libfuse, mfusepy and the right to mount")
            time.sleep(0.1)
        yield
    finally:
        subprocess.run(["umount", str(mount)], check=False)
        server.wait()


def batch_seconds(read: Callable[[np.ndarray], object], batches: np.ndarray) -> float:
    """Median time of a batch. batches: (N, B) rows."""
    times = []
    for batch in batches:
        started = time.perf_counter()
        read(batch)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure(folder: Path, ids: list[str], batches: int) -> tuple[float, float, float]:
    """Seconds a batch: rows that are asked for at once, the same again from memory, others row by row."""
    # few of the rows, since the system reads the neighbours of what it is asked for as well
    asked = np.random.default_rng(0).permutation(len(ids))[: 2 * batches * BATCH]
    ours, others = asked.reshape(2, batches, BATCH)
    cached, plain = CachedRows(PixelRows(folder), ids), PixelRows(folder)
    places = plain.locate(ids)
    return (
        batch_seconds(cached.__getitem__, ours),
        batch_seconds(cached.__getitem__, ours),
        batch_seconds(lambda batch: plain.read(places[batch]), others),
    )


def main() -> None:
    """Measure both ways on rows that are not in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=5.0, help="milliseconds until a request is answered")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], arguments.serve[1], arguments.latency / 1000)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, mount = Path(name) / "store", Path(name) / "slow"
        ids = make_store(folder, 24 * arguments.batches * BATCH)
        with slow_copy(folder, mount, arguments.latency):
            at_once, in_memory, row_by_row = measure(mount, ids, arguments.batches)
    facts = {
        "milliseconds a request": arguments.latency,
        "milliseconds a batch, at once": round(1000 * at_once, 1),
        "milliseconds a batch, row by row": round(1000 * row_by_row, 1),
        "milliseconds a batch, in memory": round(1000 * in_memory, 1),
        "rows a second, at once": round(BATCH / at_once),
    }
    claims = [Claim("row by row / at once, time of a batch that is not in memory", row_by_row / at_once, ">=", 4)]
    for what, figure in facts.items():
        print(f"{what}: {figure}")
    conclude(claims, facts, arguments.output)


if __name__ == "__main__":
    main()
