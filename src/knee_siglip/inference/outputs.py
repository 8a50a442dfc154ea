"""The files of a batch, written piece by piece so that a killed run goes on where it was.

Until all rows are done, everything lies in `results.csv.partial/`: a folder `RANK-of-RANKS` for each process, with its
part of the three files and a journal. A line of the journal says how long the files were when they were last safe on
disk; a resumed run cuts them there.
"""

import csv
import io
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from knee_siglip.core.cells import defanged
from knee_siglip.core.errors import UserError, unwritable
from knee_siglip.core.files import PARTIAL, flush_to_disk, link_or_copy, lock

logger = logging.getLogger(__name__)

RESULTS, EMBEDDINGS, IDS, STUDIES = "results.csv", "embeddings.npy", "embedding_ids.csv", "studies.csv"
JOURNAL, KEY = "journal.jsonl", "key"
NAMES = (RESULTS, EMBEDDINGS, IDS)

FORMAT = 2
"""Of an unfinished run's files; one of another format is not resumed."""

BLOCK = 2**20

ROWS_AT_RISK = 256
"""Rows between two lines of the journal: half a second of work, which a killed run does again."""

ROWS_IN_GROUP = 65_536
"""Of a Parquet file; so many are in memory at once."""

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outputs:
    """`embeddings`: float16 (N, D), row-aligned with `results`, NaN where the image failed.

    `results`, `studies`: CSV, or Parquet by the results' suffix. `ids`: CSV of row (from 0), img_path and image_id
    (sha256 of the file).
    """

    results: Path
    embeddings: Path
    ids: Path
    studies: Path

    @classmethod
    def beside(cls, results: Path) -> Self:
        """`results.csv` with `embeddings.npy`, `embedding_ids.csv` and `studies.csv`; of `NAME.csv` with `NAME_*`."""
        prefix = "" if results.stem == "results" else f"{results.stem}_"
        names = (EMBEDDINGS, IDS, f"studies{results.suffix}")
        return cls(results, *(results.with_name(prefix + name) for name in names))

    @property
    def is_parquet(self) -> bool:
        """Whether the results are a Parquet file."""
        return self.results.suffix == ".parquet"

    @property
    def partial(self) -> Path:
        """The folder of an unfinished run."""
        return self.results.with_name(self.results.name + PARTIAL)


@dataclass(frozen=True)
class Part:
    """The rows `start` to `stop` of all `rows`, which the process `rank` of `ranks` computes."""

    rows: int
    start: int
    stop: int
    rank: int = 0
    ranks: int = 1

    @classmethod
    def of_this_process(cls, rows: int, batch_size: int) -> Self:
        """By torchrun's RANK and WORLD_SIZE, in whole batches: so the same images meet in a batch however many."""
        rank, ranks = (int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")))
        return cls.of(rows, batch_size, rank, ranks)

    @classmethod
    def of(cls, rows: int, batch_size: int, rank: int, ranks: int) -> Self:
        """Part `rank` of so many."""
        batches = math.ceil(rows / batch_size)
        edges = [min(rows, batches * number // ranks * batch_size) for number in (rank, rank + 1)]
        return cls(rows, edges[0], edges[1], rank, ranks)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def folder(self) -> str:
        """Name of the folder with its files."""
        return f"{self.rank}-of-{self.ranks}"


@dataclass
class Counts:
    """Rows done, and their counts; unlike: the training images. sizes and checksums: bytes of the three files, and the
    CRC-32 of so many.
    """

    rows: int = 0
    failed: int = 0
    unlike: int = 0
    grades: dict[str, int] = field(default_factory=dict)
    sizes: tuple[int, ...] = (0, 0, 0)
    checksums: tuple[int, ...] = (0, 0, 0)

    def add(self, other: "Counts") -> None:
        """Count another part's rows too."""
        self.rows += other.rows
        self.failed += other.failed
        self.unlike += other.unlike
        for grade, count in other.grades.items():
            self.grades[grade] = self.grades.get(grade, 0) + count


@contextmanager
def open_part(outputs: Outputs, part: Part, key: str, columns: Sequence[str], width: int) -> Iterator["PartWriter"]:
    """A writer of this process's rows, which knows how many an interrupted run has done.

    Args:
        key: changes with whatever changes a row; an interrupted run with another one is not resumed.
        columns: header of the results.
        width: D of the embeddings.

    Raises:
        UserError: another process writes these outputs, or the system refuses.
    """
    folder = outputs.partial / part.folder
    with ExitStack() as stack:
        stack.enter_context(refusals(outputs))
        outputs.partial.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock(outputs.partial / f"lock-{part.rank}", f"writing {outputs.results}", wait=0))
        _prepare(folder, key)
        yield stack.enter_context(PartWriter(folder, part, columns, width, guarded=not outputs.is_parquet))


def _prepare(folder: Path, key: str) -> None:
    """Keep what an interrupted run with the same key has left there; remove all else."""
    if folder.exists() and not _has_key(folder, key):
        logger.warning("%s is of another model, table or query: starting from the first row", folder.parent)
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    (folder / KEY).write_text(key, encoding="utf-8")


def _has_key(folder: Path, key: str) -> bool:
    try:
        return (folder / KEY).read_bytes() == key.encode()
    except OSError:
        return False


def read_progress(folder: Path) -> Counts:
    """What is safe on disk: the last whole line of the journal, if it has its checksum."""
    try:
        *lines, _ = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")
        values = json.loads(lines[-1])
        if values.pop("checksum") != _checksum(values):
            return Counts()
    except (OSError, ValueError, IndexError, KeyError, AttributeError):  # none, or a line that a power failure damaged
        return Counts()
    return Counts(**values | {name: tuple(values[name]) for name in ("sizes", "checksums")})


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values).encode())


def _is_whole(path: Path, size: int, checksum: int) -> bool:
    """Whether the first `size` bytes are those that were written."""
    if not path.exists() or path.stat().st_size < size:
        return size == 0
    found = 0
    with path.open("rb") as file:
        while size and (block := file.read(min(size, BLOCK))):
            found, size = zlib.crc32(block, found), size - len(block)
    return found == checksum


class PartWriter:
    """Appends a batch at a time to the three files. done: rows, and their counts, written so far.

    The first part's files have the headers of all; `start` is the number of a part's first row.
    """

    def __init__(self, folder: Path, part: Part, columns: Sequence[str], width: int, guarded: bool) -> None:
        self.folder, self.part, self.guarded = folder, part, guarded
        self.done = read_progress(folder)
        self._pending = 0
        paths = [folder / name for name in NAMES]
        if not all(map(_is_whole, paths, self.done.sizes, self.done.checksums)):
            logger.warning("%s is damaged: starting from the first row", folder)
            self.done = Counts()
        self._files = [path.open("r+b" if path.exists() else "w+b") for path in paths]
        for file, size in zip(self._files, self.done.sizes, strict=True):
            file.truncate(size)
            file.seek(size)
        self._checksums = list(self.done.checksums)
        self._journal = (folder / JOURNAL).open("a" if self.done.rows else "w", encoding="utf-8")
        if self.done.rows and not (folder / JOURNAL).read_bytes().endswith(b"\n"):
            self._journal.write("\n")  # ends a line that was cut, so that the next one is whole
        if not self.done.rows and part.rank == 0:
            self._write_headers(columns, width)
        if not len(part):
            self.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; all of the part's rows are safe if they were written."""
        for file in (*self._files, self._journal):
            file.close()

    def write(
        self, results: Sequence[Sequence[str]], image_ids: Sequence[str], image_embeds: np.ndarray, counts: Counts
    ) -> None:
        """Append B rows: `results` starts with img_path; `image_embeds` (B, D); `counts` of these rows."""
        assert len(results) == len(image_ids) == len(image_embeds) == counts.rows
        first = self.part.start + self.done.rows
        guarded = [[defanged(cell) for cell in row] for row in results] if self.guarded else results
        named = enumerate(zip(results, image_ids, strict=True), start=first)
        self._append(RESULTS, csv_lines(guarded))
        self._append(EMBEDDINGS, image_embeds.astype("<f2").tobytes())
        self._append(IDS, csv_lines([[row, defanged(cells[0]), image_id] for row, (cells, image_id) in named]))
        self.done.add(counts)
        self._pending += counts.rows
        if self._pending >= ROWS_AT_RISK or self.done.rows == len(self.part):
            self.commit()

    def commit(self) -> None:
        """Put everything safely on disk, then say so in the journal."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self.done.sizes = tuple(file.tell() for file in self._files)
        self.done.checksums = tuple(self._checksums)
        values = asdict(self.done)
        self._journal.write(json.dumps(values | {"checksum": _checksum(values)}) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._pending = 0

    def _append(self, name: str, data: bytes) -> None:
        number = NAMES.index(name)
        self._files[number].write(data)
        self._checksums[number] = zlib.crc32(data, self._checksums[number])

    def _write_headers(self, columns: Sequence[str], width: int) -> None:
        self._append(RESULTS, csv_lines([columns]))
        self._append(IDS, csv_lines([["row", "img_path", "image_id"]]))
        header: dict[str, Any] = {"descr": "<f2", "fortran_order": False}
        header["shape"] = (self.part.rows, width)
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        self._append(EMBEDDINGS, buffer.getvalue())


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def gather_parts(outputs: Outputs, parts: Sequence[Part], key: str) -> tuple[Path, Counts]:
    """Wait until all processes have done their parts: the folder with the files of all rows, and the rows' counts.

    Raises:
        UserError: the system refuses.
    """
    first, *others = [outputs.partial / part.folder for part in parts]
    total = Counts()
    for part in parts:
        total.add(_wait_for(outputs.partial / part.folder, len(part), key))
    with refusals(outputs):
        for name in NAMES:
            with (first / name).open("ab") as whole:
                for folder in others:
                    with (folder / name).open("rb") as part_file:
                        shutil.copyfileobj(part_file, whole)
    return first, total


def put_in_place(outputs: Outputs, folder: Path, numbers: Sequence[str]) -> None:
    """Put the files of all rows, and of the studies, in place: results.csv last.

    numbers: columns that a Parquet file holds as float64.

    Raises:
        UserError: the system refuses, be it only to remove what is not needed any more.
    """
    with refusals(outputs):
        link_or_copy(folder / EMBEDDINGS, outputs.embeddings)
        link_or_copy(folder / IDS, outputs.ids)
        for name, target in ((STUDIES, outputs.studies), (RESULTS, outputs.results)):
            written = folder / name
            if outputs.is_parquet:
                written = written.with_suffix(".parquet")
                _write_parquet(folder / name, written, numbers)
            link_or_copy(written, target)
        flush_to_disk(outputs.results.parent)
    try:
        shutil.rmtree(outputs.partial)  # what is left would pass for an interrupted run, which may replace these files
    except OSError as error:
        raise UserError(
            f"{outputs.results} is complete, but {outputs.partial} cannot be removed ({error.strerror}): remove it"
        ) from None


def _wait_for(folder: Path, rows: int, key: str) -> Counts:
    """The counts of a part, when all of its rows are done."""
    told = False
    while not (_has_key(folder, key) and (folder / JOURNAL).exists() and read_progress(folder).rows == rows):
        if not told:
            logger.warning("waiting for the other processes to finish their rows (%s)", folder)
            told = True
        time.sleep(POLL_SECONDS)
    return read_progress(folder)


def _write_parquet(source: Path, target: Path, numbers: Sequence[str]) -> None:
    """CSV to Parquet, a block of rows at a time: text columns, and `numbers` as float64 with nulls."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with source.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        types = [pa.float64() if name in numbers else pa.string() for name in names]
        schema = pa.schema(list(zip(names, types, strict=True)))
        with ParquetWriter(target, schema) as writer:
            while rows := list(islice(reader, ROWS_IN_GROUP)):
                columns = [
                    [float(cell) if cell else None for cell in cells] if name in numbers else cells
                    for name, cells in zip(names, zip(*rows, strict=True), strict=True)
                ]
                arrays = [pa.array(cells, kind) for cells, kind in zip(columns, types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


@contextmanager
def refusals(outputs: Outputs) -> Iterator[None]:
    """What the system refuses while the block runs is a sentence."""
    try:
        yield
    except OSError as error:
        raise unwritable(outputs.results, error) from None
