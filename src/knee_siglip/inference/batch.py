"""Batch inference: images decoded on all cores ahead of the model, one row of results per input row, whatever happens.

Columns of the results: `img_path`, the input's other columns, per query `similarity: QUERY` (cosine) and
`probability: QUERY`, then `best_query`, the task's label and its probability (`kl_grade_predicted`, `kl_probability`),
`status` (`ok`, or what is wrong with that image; its other result cells are empty).
"""

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from knee_siglip.core.threads import available_cores
from knee_siglip.imaging.decode.read import ImageError, decode, read_bytes
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.inference.outputs import Outputs, open_outputs
from knee_siglip.inference.predictor import Predictor, distinct_queries
from knee_siglip.inference.rows import ImageRows, carried_names
from knee_siglip.task.task import Labels

OK = "ok"
BATCHES_AHEAD = 2
"""Decoded batches that wait for the model: enough that neither waits for the other; more would only fill memory."""


PROGRESS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass
class Summary:
    """Counts of the rows; `grades` counts the predicted labels, by position, of the `ok` ones."""

    labels: Labels
    rows: int = 0
    failed: int = 0
    grades: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    def metrics(self) -> dict[str, Any]:
        """Counts, the same in every run over the same rows."""
        predicted = {value: self.grades[grade] for grade, value in enumerate(self.labels.values)}
        counts: dict[str, Any] = {"rows": self.rows, "ok": self.rows - self.failed, "failed": self.failed}
        return counts | ({self.labels.predicted: predicted} if self.labels else {})

    def speed(self) -> dict[str, float]:
        """Time and rate, without loading the checkpoint."""
        return {"seconds": round(self.seconds, 2), "images_per_second": round(self.rows / max(self.seconds, 1e-9), 1)}


@dataclass(frozen=True)
class PreparedImage:
    """pixels: uint8 (S, S), None where `error` says what is wrong; image_id: sha256 of the file, "" if unreadable."""

    pixels: np.ndarray | None
    image_id: str
    error: str = ""


def infer_batch(
    predictor: Predictor, table: ImageRows, queries: Sequence[str], outputs: Outputs, batch_size: int
) -> Summary:
    """Write the results, embeddings and ids of every row of `table`; an unreadable image is a row with its error.

    Raises:
        UserError: the outputs cannot be written, or the device runs out of memory.
    """
    queries, labels = distinct_queries(queries), predictor.task.labels
    names = result_columns(queries, labels)
    carried = carried_names(list(table.rows.columns[1:]), ["img_path", *names])
    scorer = _Scorer(predictor, queries)
    summary, started = Summary(labels, rows=len(table)), time.monotonic()
    inputs = table.rows.itertuples(index=False, name=None)
    with (
        open_outputs(outputs, ["img_path", *carried, *names], len(table), scorer.width) as writer,
        Progress(*PROGRESS, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("infer", total=len(table))
        for images in prepared_batches(table.files, predictor.transform, batch_size):
            cells, image_embeds = scorer.score(images, summary)
            rows = [[*row, *cell] for row, cell in zip(islice(inputs, len(images)), cells, strict=True)]
            writer.write(rows, [image.image_id for image in images], image_embeds)
            progress.advance(task, len(images))
    summary.seconds = time.monotonic() - started
    return summary


def result_columns(queries: Sequence[str], labels: Labels) -> list[str]:
    """Names of the result columns, in order."""
    scores = [f"{kind}: {query}" for query in queries for kind in ("similarity", "probability")]
    graded = [labels.predicted, labels.probability] if labels else []
    return [*scores, "best_query", *graded, "status"]


def prepared_batches(
    files: Sequence[Path | None], transform: Transform, batch_size: int
) -> Iterator[list[PreparedImage]]:
    """Decode in order, at most `BATCHES_AHEAD` batches (or two images per core, if more) ahead of the reader."""
    workers = available_cores()
    ahead = max(BATCHES_AHEAD, math.ceil(2 * workers / batch_size))
    pending: deque[list[Future[PreparedImage]]] = deque()
    # Threads: Pillow, numpy and scipy release the interpreter lock, and nothing has to be copied between processes.
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for start in range(0, len(files), batch_size):
            pending.append([pool.submit(prepare_image, file, transform) for file in files[start : start + batch_size]])
            if len(pending) > ahead:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]


def prepare_image(file: Path | None, transform: Transform) -> PreparedImage:
    """Read one image; whatever is wrong with it becomes the `error` of its row."""
    if file is None:
        return PreparedImage(None, "", "img_path is empty")
    try:
        data = read_bytes(file)
        pixels = transform(decode(data, file).grey)
    except ImageError as error:
        return PreparedImage(None, "", _one_line(error))
    except Exception as error:  # one odd file must not end a run over thousands; its row says what it was
        return PreparedImage(None, "", f"{file}: {type(error).__name__}: {_one_line(error)}")
    return PreparedImage(pixels, hashlib.sha256(data).hexdigest())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Scorer:
    """Turns decoded images into the result cells of their rows."""

    def __init__(self, predictor: Predictor, queries: list[str]) -> None:
        self.predictor = predictor
        self.queries = queries
        self.query_embeds = predictor.embed_queries(queries)
        self.width = self.query_embeds.shape[1]
        self.blank = [""] * (len(result_columns(queries, predictor.task.labels)) - 1)

    def score(self, images: list[PreparedImage], summary: Summary) -> tuple[list[list[str]], np.ndarray]:
        """B images to B rows of result cells and (B, D) embeddings, NaN for the failed; counts into `summary`."""
        cells = [[*self.blank, image.error] for image in images]
        embeds = np.full((len(images), self.width), np.nan, dtype=np.float32)
        readable = {row: image.pixels for row, image in enumerate(images) if image.pixels is not None}
        summary.failed += len(images) - len(readable)
        if readable:
            rows = list(readable)
            embeds[rows] = self.predictor.embed_images(np.stack(list(readable.values())))
            for row, values in zip(rows, self._cells(embeds[rows], summary), strict=True):
                cells[row] = values
        return cells, embeds

    def _cells(self, image_embeds: np.ndarray, summary: Summary) -> Iterator[list[str]]:
        similarities = image_embeds @ self.query_embeds.T
        probabilities = self.predictor.probabilities(similarities)
        grades = self.predictor.grade_probabilities(image_embeds)
        for cosines, fits, grade in zip(similarities, probabilities, grades, strict=True):
            cells = [f"{value:.6f}" for pair in zip(cosines, fits, strict=True) for value in pair]
            cells.append(self.queries[int(cosines.argmax())])
            if len(grade):  # the task has labels
                best = int(grade.argmax())
                summary.grades[best] += 1
                cells += [self.predictor.task.labels.values[best], f"{grade[best]:.6f}"]
            yield [*cells, OK]
