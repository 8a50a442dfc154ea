"""Results by study: one row for all images of a `study_id`, from the mean of their embeddings, as evaluation has it.

Columns of `studies.csv`: `study_id` and, where the input has them, `patient_id`, `view` and `side` (`ap+lateral`: all
of the study's), `images` (how many could be read), `img_path` (their names, `; ` between), then the results' columns. A
row without a study is one of its own. A table without studies gives the header alone.
"""

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from knee_siglip.core.cells import as_meant, defanged
from knee_siglip.inference.outputs import EMBEDDINGS, RESULTS, STUDIES, Outputs, csv_lines, refusals
from knee_siglip.model.embedding import ensemble
from knee_siglip.tables.ids import id_keys, known_ids
from knee_siglip.tables.manifest import number_groups

logger = logging.getLogger(__name__)

Score = Callable[[np.ndarray], Iterator[list[str]]]
"""(B, D) L2-normalised embeddings to the cells of their results."""

OK, UNREAD = "ok", "none of its images could be read"
STUDIES_AT_ONCE = 1024
NAMED = ("patient_id", "view", "side")
READ = ("img_path", "study_id", *NAMED, "status", "warnings", "cautions")
CAUTIONS_BETWEEN = "; "


def write_studies(outputs: Outputs, folder: Path, scored: Sequence[str], score: Score) -> int | None:
    """Write the studies of the finished results in `folder` into its studies.csv.

    scored: names of the cells that `score` gives. Holds the names of all images in memory, and their embeddings never.

    Returns the number of studies, None where the table names none.

    Raises:
        UserError: the file cannot be written.
    """
    with refusals(outputs), (folder / STUDIES).open("wb") as file:
        with (folder / RESULTS).open(encoding="utf-8", newline="") as results:
            columns = next(csv.reader(results))
        named = [name for name in NAMED if name in columns]
        file.write(csv_lines([["study_id", *named, "images", "img_path", *scored, "status", "warnings", "cautions"]]))
        if "study_id" not in columns:
            return None
        used = [name for name in READ if name in columns]
        rows = pd.read_csv(folder / RESULTS, usecols=used, dtype=str, keep_default_na=False)
        rows = rows if outputs.is_parquet else rows.map(as_meant)  # the results' cells are defanged already
        rows["study_id"] = known_ids(rows["study_id"])
        groups = _groups(number_groups(rows.assign(study=_apart(rows)), "study"))
        embeds = np.load(folder / EMBEDDINGS, mmap_mode="r")
        for start in range(0, len(groups), STUDIES_AT_ONCE):
            part = groups[start : start + STUDIES_AT_ONCE]
            lines = _lines(rows, part, named, embeds, score, len(scored))
            file.write(csv_lines(lines if outputs.is_parquet else ([*map(defanged, line)] for line in lines)))
        return len(groups)


def _lines(
    rows: pd.DataFrame, groups: Sequence[np.ndarray], named: Sequence[str], embeds: np.ndarray, score: Score, width: int
) -> Iterator[list[str]]:
    readable = (rows["status"] == OK).to_numpy()
    read = [group[readable[group]] for group in groups]
    means = [ensemble(embeds[group].astype(np.float32)) for group in read if len(group)]
    scores = score(np.stack(means)) if means else iter(())
    for group, found in zip(groups, read, strict=True):
        images = rows.iloc[group]
        told = [_together(images[name]) for name in named]
        paths = "; ".join(images["img_path"])
        failed = len(group) - len(found)
        status = UNREAD if not len(found) else f"{failed} of {len(group)} images could not be read" if failed else OK
        cells = next(scores) if len(found) else [""] * width
        warnings = " ".join(dict.fromkeys(" ".join(images["warnings"]).split()))
        cautions = dict.fromkeys(
            caution for cell in images["cautions"] if cell for caution in cell.split(CAUTIONS_BETWEEN)
        )
        told_last = [status, warnings, CAUTIONS_BETWEEN.join(cautions)]
        yield [images["study_id"].iloc[0], *told, str(len(found)), paths, *cells, *told_last]


def _apart(rows: pd.DataFrame) -> pd.Series:
    """The ids of the studies, with the patient's where several patients have one: images of two are never mixed."""
    if "patient_id" not in rows:
        return rows["study_id"]
    studies, patients = id_keys(rows["study_id"]), id_keys(rows["patient_id"])
    counts = patients[patients != ""].groupby(studies).nunique()
    shared = set(counts.index[counts > 1]) - {""}
    if shared:
        logger.warning(
            "studies of several patients have one study_id (%d of them, %r for example) and are kept apart by patient",
            len(shared),
            sorted(shared)[0],
        )
    return rows["study_id"].where(~studies.isin(shared), studies + " of " + patients)


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """The rows of each study, studies in the order of their first rows."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _together(cells: pd.Series) -> str:
    return "+".join(sorted(set(cells) - {""}))
