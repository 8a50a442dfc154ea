"""The files of a batch: written as `*.partial`, renamed at the end.

A killed run leaves no half `results.csv`; what it had done is in `results.csv.*.partial`.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

import numpy as np

from knee_siglip.core.files import atomic_file, atomic_text


@dataclass(frozen=True)
class Outputs:
    """`embeddings`: float16 (N, D), row-aligned with `results`, NaN where the image failed.

    `ids`: CSV of row (from 0), img_path and image_id (sha256 of the file).
    """

    results: Path
    embeddings: Path
    ids: Path

    @classmethod
    def beside(cls, results: Path) -> Self:
        """`results.csv` with `embeddings.npy` and `embedding_ids.csv`; for any `NAME.csv` these start with `NAME_`."""
        prefix = "" if results.stem == "results" else f"{results.stem}_"
        return cls(
            results, results.with_name(f"{prefix}embeddings.npy"), results.with_name(f"{prefix}embedding_ids.csv")
        )


@contextmanager
def open_outputs(outputs: Outputs, columns: Sequence[str], count: int, width: int) -> Iterator["OutputWriter"]:
    """A writer of N = `count` rows; the files are put in place when the block ends without an error.

    Of two runs with the same outputs the later one wins, as a whole.

    Args:
        columns: header of the results.
        width: D of the embeddings.

    Raises:
        UserError: the files cannot be written.
    """
    with (  # the first is placed last: where results.csv is new, the others are too
        atomic_text(outputs.results, keep_partial=True) as results,
        atomic_file(outputs.embeddings, keep_partial=True) as embeddings,
        atomic_text(outputs.ids, keep_partial=True) as ids,
    ):
        writer = OutputWriter(results, embeddings, ids)
        writer.write_headers(columns, count, width)
        yield writer
        assert writer.done == count, f"{writer.done} of {count} rows written"


class OutputWriter:
    """Appends a batch at a time to the three files. done: rows written so far."""

    def __init__(self, results: TextIO, embeddings: BinaryIO, ids: TextIO) -> None:
        self._files = (results, embeddings, ids)
        self._results = csv.writer(results, lineterminator="\n")
        self._ids = csv.writer(ids, lineterminator="\n")
        self._embeddings = embeddings
        self.done = 0

    def write_headers(self, columns: Sequence[str], count: int, width: int) -> None:
        """Begin the files, as `open_outputs` is told."""
        self._results.writerow(columns)
        self._ids.writerow(["row", "img_path", "image_id"])
        header: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(self._embeddings, header)

    def write(self, results: Sequence[Sequence[str]], image_ids: Sequence[str], image_embeds: np.ndarray) -> None:
        """Append B rows: `results` starts with img_path; `image_embeds` (B, D)."""
        assert len(results) == len(image_ids) == len(image_embeds)
        self._results.writerows(results)
        numbered = enumerate(zip(results, image_ids, strict=True), start=self.done)
        self._ids.writerows((row, result[0], image_id) for row, (result, image_id) in numbered)
        self._embeddings.write(image_embeds.astype("<f2").tobytes())
        self.done += len(results)
        # A killed run shall leave what it had done, not what happened to be in the buffers.
        for file in self._files:
            file.flush()
