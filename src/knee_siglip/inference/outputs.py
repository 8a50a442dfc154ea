"""The files of a batch. They grow under a `.partial` name and get their own at the end of the run.

A run that is killed leaves no half `results.csv`, and what it had done can be read in `results.csv.partial`.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from knee_siglip.core.errors import UserError


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


class OutputWriter:
    """Appends a batch at a time; leaving the `with` block without an error puts the finished files in place.

    Args:
        outputs: where to.
        columns: header of the results.
        count: rows N there will be.
        width: D of the embeddings.
    """

    def __init__(self, outputs: Outputs, columns: Sequence[str], count: int, width: int) -> None:
        self.outputs = outputs
        try:
            outputs.results.parent.mkdir(parents=True, exist_ok=True)
            self._results_file = _partial(outputs.results).open("w", newline="", encoding="utf-8")
            self._ids_file = _partial(outputs.ids).open("w", newline="", encoding="utf-8")
            self._embeddings: IO[bytes] = _partial(outputs.embeddings).open("wb")
        except OSError as error:
            raise UserError(f"{outputs.results} cannot be written: {error.strerror}") from None
        self._results = csv.writer(self._results_file, lineterminator="\n")
        self._ids = csv.writer(self._ids_file, lineterminator="\n")
        self._results.writerow(columns)
        self._ids.writerow(["row", "img_path", "image_id"])
        header: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(self._embeddings, header)
        self._count, self._done = count, 0

    def __enter__(self) -> Self:
        return self

    def write(self, results: Sequence[Sequence[str]], image_ids: Sequence[str], image_embeds: np.ndarray) -> None:
        """Append B rows: `results` starts with img_path; `image_embeds` (B, D)."""
        assert len(results) == len(image_ids) == len(image_embeds)
        self._results.writerows(results)
        numbered = enumerate(zip(results, image_ids, strict=True), start=self._done)
        self._ids.writerows((row, result[0], image_id) for row, (result, image_id) in numbered)
        self._embeddings.write(image_embeds.astype("<f2").tobytes())
        self._done += len(results)
        # A killed run shall leave what it had done, not what happened to be in the buffers.
        for file in (self._results_file, self._ids_file, self._embeddings):
            file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._results_file, self._ids_file, self._embeddings):
            file.close()
        if kind is not None:
            return
        assert self._done == self._count, f"{self._done} of {self._count} rows written"
        # results.csv last: where it is new, the others are too.
        for field in reversed(fields(self.outputs)):
            path = getattr(self.outputs, field.name)
            _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")
