"""The command `knee-siglip split`: a patient-disjoint, stratified split for a CSV that has none.

knee-siglip split knees.csv train.csv
knee-siglip split knees.csv train.csv --test 0.2 --seed 1 --patient_id_pattern '([0-9]+)[LR]'
"""

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knee_siglip.core.cells import echo
from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import atomic_text, sole_writer

# pandas is imported inside the functions: `--help` must not wait for it.
if TYPE_CHECKING:
    import pandas as pd

    from knee_siglip.cli.split.assignment import Shares

VAL, TEST = 0.15, 0.15
IMAGES_PER_CHUNK = 256
VALUES_SHOWN = 8
"""A stratified column with more values is not shown in the printed table."""

logger = logging.getLogger(__name__)


def split(
    in_csv: Annotated[Path, typer.Argument(metavar="IN.csv", help="CSV with img_path; patient_id where you have it.")],
    out_csv: Annotated[Path, typer.Argument(metavar="OUT.csv", help="The same rows with the column split.")],
    val: Annotated[float, typer.Option("--val", help="Share of the rows.")] = VAL,
    test: Annotated[float, typer.Option("--test", help="Share of the rows.")] = TEST,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another split.")] = 0,
    stratify: Annotated[
        list[str] | None, typer.Option("--stratify", help="Column to keep alike, repeatable. None: the task's labels.")
    ] = None,
    patient_id_pattern: Annotated[
        str | None,
        typer.Option("--patient_id_pattern", help="Regular expression; its first group is the patient in img_path."),
    ] = None,
    overwrite_split: Annotated[
        bool, typer.Option("--overwrite_split", help="Draw anew where IN.csv already says a split.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.csv.")] = False,
) -> None:
    """Split a CSV into train, val and test: patients and images never cross splits, grades are stratified."""
    from knee_siglip.cli.split.assignment import Shares

    shares = Shares(val, test)
    names = stratify or default_stratified()
    with sole_writer(out_csv):
        _check_paths(in_csv, out_csv, force)
        table, warnings = split_csv(in_csv, out_csv, shares, seed, stratify, patient_id_pattern, overwrite_split)
    for warning in warnings:
        logger.warning(warning)
    _show(table, out_csv, names[0] if names else "", patient_id_pattern)


def default_stratified() -> list[str]:
    """The column of the task's labels, or else those of its findings, by params.yaml; outside a project the knee's.

    Raises:
        UserError: params.yaml is invalid.
    """
    from knee_siglip.core.paths import PARAMS, project_root
    from knee_siglip.params.files import load_params
    from knee_siglip.params.sections import Params
    from knee_siglip.params.tasks import task_of

    root = project_root()
    task = task_of(load_params(root / PARAMS) if root else Params())
    columns = dict.fromkeys(finding.column for finding in task.findings.values() if finding.column)
    return [task.labels.column] if task.labels else list(columns)


def split_csv(
    in_csv: Path,
    out_csv: Path,
    shares: "Shares",
    seed: int,
    stratify: Sequence[str] | None,
    pattern: str | None,
    overwrite_split: bool,
) -> tuple["pd.DataFrame", list[str]]:
    """Write the rows of in_csv, unchanged and in order, with a split.

    What changes: a row of several images becomes several rows, `split`, a relative img_path where out_csv lies in
    another folder, and with a pattern `patient_id`. Images are read, so that patients who share a file's bytes stay in
    one split; one that cannot be read only goes unchecked.

    Returns what was written, and warnings for the user.
    """
    import pandas as pd

    from knee_siglip.cli.split.assignment import split_table
    from knee_siglip.tables.table import read_table
    from knee_siglip.tables.views import expand_views
    from knee_siglip.validation.splits.leakage import patient_ids

    table = expand_views(read_table(in_csv)).table
    _check_columns(table, in_csv, stratify, overwrite_split)
    files = [os.path.normpath(in_csv.parent / name) if name.strip() else "" for name in table["img_path"]]
    image_ids = pd.Series(_image_ids(files), table.index, dtype=str)
    names = list(stratify or default_stratified())
    links = [pd.Series(files, table.index, dtype=object), image_ids]  # a path may have bytes that are no text
    done, warnings = split_table(table, shares, seed=seed, stratify=names, pattern=pattern, links=links)
    if unread := int((image_ids == "").sum()):
        warnings.append(
            f"{unread} of {len(table)} images cannot be read: whether they repeat another one was not checked"
        )
    if not stratify and (missing := [name for name in names if name not in table.columns]):
        warnings.append(f"there is no column {missing[0]}: name with --stratify what shall be alike in all splits")
    if pattern is not None:  # img_path may change with the folder: then the pattern would find nobody in it
        done = done.assign(patient_id=patient_ids(table, pattern)[0])
    done = done.assign(img_path=_moved(table["img_path"], in_csv.parent, out_csv.parent))
    # Python before 3.13 leaves a lone carriage return unquoted, and a reader takes it for the end of the row.
    odd = any("\r" in cell for name in done.columns for cell in (name, *done[name]))
    with atomic_text(out_csv) as file:
        done.to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL)
    return done, warnings


def _check_paths(in_csv: Path, out_csv: Path, force: bool) -> None:
    if not in_csv.is_file():
        raise UsageError(f"{in_csv} is no file; it must be a CSV with the column img_path")
    if out_csv.is_dir():
        raise UsageError(f"{out_csv} is a folder; name a CSV file")
    if not out_csv.parent.is_dir():
        raise UsageError(f"the folder {out_csv.parent} does not exist; make it, or name another file")
    if out_csv.exists() and out_csv.samefile(in_csv):
        raise UsageError(f"{out_csv} is the input itself; name another file")
    if out_csv.exists() and not force:
        raise UsageError(f"{out_csv} exists; name another file, or replace it with --force")


def _check_columns(table: "pd.DataFrame", path: Path, stratify: Sequence[str] | None, overwrite_split: bool) -> None:
    there = f"its columns are {', '.join(table.columns)}"
    if "img_path" not in table.columns:
        raise UsageError(f"{path} has no column img_path; {there}")
    if table.empty:
        raise UsageError(f"{path} has no rows; there is nothing to split")
    for name in stratify or ():
        if name not in table.columns or name == "split":
            raise UsageError(f"--stratify {name}: {path} has no such column to keep alike; {there}")
    if "split" in table.columns and not overwrite_split:
        given = table.index[table["split"].str.strip() != ""]
        if len(given):
            raise UsageError(
                f"{path} has a split in {len(given)} of {len(table)} rows, the first in row {given[0]}; it is left as "
                "it is: go on with this file, or draw all rows anew with --overwrite_split"
            )


def _image_ids(files: Sequence[str]) -> list[str]:
    """sha256 of each file's bytes; '' where it cannot be read."""
    from knee_siglip.core.processes import work_in_chunks

    names = sorted({name for name in files if name})
    found = dict(chain.from_iterable(work_in_chunks(_hashes, names, IMAGES_PER_CHUNK, "Reading images")))
    return [found.get(name, "") for name in files]


def _hashes(names: Sequence[str]) -> list[tuple[str, str]]:
    from knee_siglip.imaging.decode.read import ImageError, read_bytes

    pairs = []
    for name in names:
        try:
            pairs.append((name, hashlib.sha256(read_bytes(Path(name))).hexdigest()))
        except ImageError:
            pairs.append((name, ""))
    return pairs


def _moved(names: "pd.Series", old: Path, new: Path) -> "pd.Series":
    """Each img_path as seen from the folder `new` instead of `old`; absolute and empty ones stay."""
    if old.resolve() == new.resolve():
        return names
    linked = new.resolve() != new.absolute()  # `..` would start at the link's target

    def move(name: str) -> str:
        if not name.strip() or Path(name).is_absolute():
            return name
        path = os.path.normpath(old.absolute() / name)
        path = path if linked else Path(os.path.relpath(path, new.absolute())).as_posix()
        if any("\ud800" <= character <= "\udfff" for character in path):  # undecodable bytes, as Python holds them
            raise UsageError(
                f"{new}: the way from there to the images of {old} is no Unicode text, as a CSV needs it; write the "
                "CSV into the same folder as the other one, or rename the folder"
            )
        return path

    return names.map(move)


def _show(table: "pd.DataFrame", path: Path, column: str, pattern: str | None) -> None:
    """What each split holds, on stdout."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from knee_siglip.core.terminal import Terminal
    from knee_siglip.tables.ids import independent_units
    from knee_siglip.tables.manifest import SPLITS
    from knee_siglip.validation.splits.leakage import patient_ids

    known = table.assign(patient_id=patient_ids(table, None)[0])
    values = sorted(set(table[column].str.strip()) - {""}) if column in table.columns else []
    values = values if len(values) <= VALUES_SHOWN else []
    shown = Table("split", "rows", "", "independent units", *map(escape, values), title=Text(str(path)))
    for name in SPLITS:
        chosen = (table["split"] == name).to_numpy()
        counts = [str(chosen.sum()), f"{chosen.mean():.1%}", str(independent_units(known[chosen]))]
        if values:
            cells = table.loc[chosen, column].str.strip()
            graded = max(1, int((cells != "").sum()))
            counts += [f"{(cells == value).sum() / graded:.1%}" for value in values]
        shown.add_row(name, *counts)
    if values:
        shown.caption = Text(f"{values[0]} ... {values[-1]}: share of the rows by {column}, where it is known")
    Terminal().print(shown)
    if pattern is not None:
        echo("The patients that the pattern found stand in the column patient_id, where validation reads them")
