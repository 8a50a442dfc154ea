"""Batch inference: batches side by side on all cores, one row of results per input row, whatever happens.

Columns of the results: `img_path`, the input's other columns, per query `similarity: QUERY` (cosine) and
`probability: QUERY`, then `best_query`, the task's label and its probability (`kl_grade_predicted`, `kl_probability`),
`distance_to_training` (above 1 an image is unlike the training images), `status` (`ok`, or what is wrong with that
image; its other result cells are empty), `warnings` (names of checks, such as `inverted_image` and
`unlike_training_images`), `cautions` (what must be known of the model).
"""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from knee_siglip import __version__
from knee_siglip.core.processes import worker_processes
from knee_siglip.core.threads import available_cores
from knee_siglip.imaging.appearance import warnings_of
from knee_siglip.imaging.decode.read import ImageError, decode, read_bytes
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.inference.outputs import (
    FORMAT,
    Counts,
    Outputs,
    Part,
    PartWriter,
    gather_parts,
    open_part,
    put_in_place,
)
from knee_siglip.inference.predictor import Predictor, distinct_queries
from knee_siglip.inference.rows import ImageRows, Row, carried_names
from knee_siglip.inference.studies import CAUTIONS_BETWEEN, write_studies
from knee_siglip.task.task import Labels

OK = "ok"
BATCHES_AHEAD = 2
"""Batches that wait for a thread or for being written; more would only fill memory."""

SCORES = ("similarity: ", "probability: ")
LABEL_CELL = -2
"""Of `_Scorer.cells`: the predicted label, before its probability."""
DISTANCE = "distance_to_training"
UNLIKE_WARNING = "unlike_training_images"

PROGRESS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class Summary:
    """Counts of all rows: `done.grades` counts the predicted labels of the `ok` ones. seconds: of this process."""

    labels: Labels
    done: Counts
    seconds: float = 0.0
    computed: int = 0
    """Rows of this process that no earlier, interrupted run had done."""
    studies: int | None = None
    """None: the table names none."""

    @property
    def failed(self) -> int:
        """Rows whose image could not be read."""
        return self.done.failed

    def metrics(self) -> dict[str, Any]:
        """Counts, the same in every run over the same rows."""
        predicted = {value: self.done.grades.get(value, 0) for value in self.labels.values}
        rows, failed = self.done.rows, self.done.failed
        counts: dict[str, Any] = {"rows": rows, "ok": rows - failed, "failed": failed, UNLIKE_WARNING: self.done.unlike}
        counts |= {} if self.studies is None else {"studies": self.studies}
        return counts | ({self.labels.predicted: predicted} if self.labels else {})

    def speed(self) -> dict[str, float]:
        """Time and rate, without loading the checkpoint."""
        return {
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.computed / max(self.seconds, 1e-9), 1),
        }


@dataclass(frozen=True)
class PreparedImage:
    """image_id: sha256 of the file, "" where `error` says what is wrong with it.

    warnings: names of the checks of appearance that it does not pass, as in validation's issues.csv.
    """

    image_id: str = ""
    error: str = ""
    warnings: str = ""


@dataclass(frozen=True)
class BatchResult:
    """results: B rows of cells, the input's first; image_ids (B,); image_embeds (B, D), NaN for the failed."""

    results: list[list[str]]
    image_ids: list[str]
    image_embeds: np.ndarray
    counts: Counts


def infer_batch(
    predictor: Predictor, table: ImageRows, queries: Sequence[str], outputs: Outputs, batch_size: int
) -> Summary:
    """Write the results, embeddings and ids of every row of `table`, and the results of its studies (`studies.py`).

    An unreadable image is a row with its error.

    An interrupted run with the same model, table and queries goes on where it was. Under torchrun each process takes a
    part of the rows; the first one puts the files in place and returns the counts of all rows, the others of theirs.

    Raises:
        UserError: the outputs cannot be written, the model is damaged, or the device runs out of memory.
    """
    queries, labels = distinct_queries(queries), predictor.task.labels
    names, studies = result_columns(queries, labels), None
    columns = ["img_path", *carried_names(table.columns[1:], ["img_path", *names]), *names]
    part = Part.of_this_process(len(table), batch_size)
    key = _run_key(predictor, table, columns, batch_size, part.ranks)
    started = time.monotonic()
    with single_threaded(predictor.device):
        scorer = _Scorer(predictor, queries)
        with open_part(outputs, part, key, columns, scorer.width) as writer:
            before = writer.done.rows
            rows = islice(table, part.start + before, part.stop)
            _write_all(writer, scored_batches(scorer, rows, batch_size, table.id_cell), len(part))
            done, computed = writer.done, writer.done.rows - before
            if part.rank == 0:
                parts = [Part.of(len(table), batch_size, rank, part.ranks) for rank in range(part.ranks)]
                numbers = [name for name in names if name.startswith(SCORES) or name in (labels.probability, DISTANCE)]
                writer.close()
                folder, done = gather_parts(outputs, parts, key)
                studies = write_studies(outputs, folder, names[:-4], scorer.cells)
                put_in_place(outputs, folder, numbers)
    return Summary(labels, done, time.monotonic() - started, computed, studies)


def _write_all(writer: PartWriter, results: Iterable[BatchResult], total: int) -> None:
    with Progress(*PROGRESS, console=Console(stderr=True)) as progress:
        task = progress.add_task("infer", total=total, completed=writer.done.rows)
        for result in results:
            writer.write(result.results, result.image_ids, result.image_embeds, result.counts)
            progress.advance(task, len(result.results))


def _run_key(predictor: Predictor, table: ImageRows, columns: list[str], batch_size: int, ranks: int) -> str:
    """Changes with whatever changes a byte of the results."""
    facts = [__version__, FORMAT, predictor.digest, str(predictor.transform), predictor.device.type, table.digest]
    facts += [str(predictor.task), str(predictor.checkpoint.vision_dtype)]
    return hashlib.sha256(json.dumps([*facts, columns, batch_size, ranks]).encode()).hexdigest()


@contextmanager
def single_threaded(device: torch.device) -> Iterator[None]:
    """One thread per operator while the block runs: the cores are taken by batches instead.

    Else BLAS's threads of all batches wait for each other, and on a CPU a result would depend on the number of cores.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def result_columns(queries: Sequence[str], labels: Labels) -> list[str]:
    """Names of the result columns, in order."""
    scores = [f"{kind}{query}" for query in queries for kind in SCORES]
    graded = [labels.predicted, labels.probability] if labels else []
    return [*scores, "best_query", *graded, DISTANCE, "status", "warnings", "cautions"]


def scored_batches(
    scorer: "_Scorer", rows: Iterable[Row], batch_size: int, id_cell: int | None = None
) -> Iterator[BatchResult]:
    """Batches in order: each read by one process and encoded by one thread, a few ahead of who writes them.

    Processes, because the PNG decoder holds the interpreter lock; what they send back is small. A single batch is read
    here: starting processes takes longer.
    """
    workers, rows = available_cores(), iter(rows)
    batches = iter(lambda: list(islice(rows, batch_size)), [])
    first, second = next(batches, []), next(batches, [])
    read = partial(prepare_images, scorer.predictor.transform, id_cell)
    if not second:
        yield from [scorer.score(first, *read(first))] if first else []
        return
    pending: deque[Future[BatchResult]] = deque()
    with worker_processes(workers, "Reading images") as readers, ThreadPoolExecutor(workers, "infer") as pool:
        try:
            for batch in chain((first, second), batches):
                images = readers.submit(read, batch)
                pending.append(pool.submit(lambda batch, images: scorer.score(batch, *images.result()), batch, images))
                if len(pending) >= workers + BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)  # else threads wait for what nobody will read
            pool.shutdown(cancel_futures=True)


def prepare_images(
    transform: Transform, id_cell: int | None, rows: Sequence[Row]
) -> tuple[np.ndarray, list[PreparedImage]]:
    """Read the images of a batch: uint8 (B, S, S), one array, which travels faster between processes than B of them.

    Black ones stand for unreadable images: in a smaller batch the others' last digits would be others. id_cell: place
    of the cell that holds the sha256 of the file, where one does.
    """
    pixels = np.zeros((len(rows), transform.image_size, transform.image_size), dtype=np.uint8)
    expected = [None if id_cell is None else cells[id_cell] for cells, _ in rows]
    images = [
        prepare_image(file, image_id, transform, out)
        for (_, file), image_id, out in zip(rows, expected, pixels, strict=True)
    ]
    return pixels, images


def prepare_image(file: Path | None, image_id: str | None, transform: Transform, out: np.ndarray) -> PreparedImage:
    """Read one image into `out`; whatever is wrong with it becomes the `error` of its row. image_id: it must have."""
    if file is None:
        return PreparedImage(error="img_path is empty")
    try:
        data = read_bytes(file)
        image = decode(data, file)
        pixels = transform(image.grey)
        warnings = " ".join(warnings_of(image))
    except ImageError as error:
        return PreparedImage(error=_one_line(error))
    except Exception as error:  # one odd file must not end a run over thousands; its row says what it was
        return PreparedImage(error=f"{file}: {type(error).__name__}: {_one_line(error)}")
    found = hashlib.sha256(data).hexdigest()
    if image_id not in (None, found):
        return PreparedImage(error=f"{file}: has changed since it was validated; run dvc repro validate")
    out[:] = pixels
    return PreparedImage(found, warnings=warnings)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Scorer:
    """Turns rows into their results; several threads share it."""

    def __init__(self, predictor: Predictor, queries: list[str]) -> None:
        self.predictor = predictor
        self.queries = queries
        self.query_embeds = predictor.embed_queries(queries)
        self.width = self.query_embeds.shape[1]
        self.blank = [""] * (len(result_columns(queries, predictor.task.labels)) - 3)
        if predictor.task.labels:
            predictor.prompt_embeds  # noqa: B018 computed once, before the threads ask for it

    def score(self, rows: Sequence[Row], pixels: np.ndarray, images: Sequence[PreparedImage]) -> BatchResult:
        """Encode B rows and their images (B, S, S)."""
        results = [[*self.blank, image.error, "", ""] for image in images]
        embeds = np.full((len(images), self.width), np.nan, dtype=np.float32)
        readable = [place for place, image in enumerate(images) if not image.error]
        counts = Counts(len(images), failed=len(images) - len(readable))
        if readable:
            found = self.predictor.embed_images(pixels)
            embeds[readable] = found[readable]
            distances, all_cells = self.predictor.distances(found).tolist(), list(self.cells(found))
            for place in readable:
                cells, distance = all_cells[place], distances[place]
                warnings = f"{images[place].warnings} {UNLIKE_WARNING * (distance > 1)}".strip()
                cautions = CAUTIONS_BETWEEN.join(self.predictor.cautions_at(distance))
                shown = "" if math.isnan(distance) else f"{distance:.4f}"
                results[place] = [*cells, shown, OK, warnings, cautions]
                counts.unlike += distance > 1
                if self.predictor.task.labels:
                    label = cells[LABEL_CELL]
                    counts.grades[label] = counts.grades.get(label, 0) + 1
        cells_of = [[*cells, *result] for (cells, _), result in zip(rows, results, strict=True)]
        return BatchResult(cells_of, [image.image_id for image in images], embeds, counts)

    def cells(self, image_embeds: np.ndarray) -> Iterator[list[str]]:
        """(B, D) of images, or of studies, to the cells of `result_columns` before the distance."""
        similarities = image_embeds @ self.query_embeds.T
        probabilities = self.predictor.probabilities(similarities)
        grades = self.predictor.grade_probabilities(image_embeds)
        for cosines, fits, grade in zip(similarities, probabilities, grades, strict=True):
            cells = [f"{value:.6f}" for pair in zip(cosines, fits, strict=True) for value in pair]
            cells.append(self.queries[int(cosines.argmax())])
            if len(grade):  # the task has labels
                best = int(grade.argmax())
                cells += [self.predictor.task.labels.values[best], f"{grade[best]:.6f}"]
            yield cells
