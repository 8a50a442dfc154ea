"""The command `knee-siglip import`: from a download, an export or a folder to the project's CSV.

knee-siglip import /data/NIH knees.csv --split
knee-siglip import export.xlsx knees.csv --images /data/images --map patient_id=PatNr --join reports.csv
knee-siglip import /data/pacs knees.csv --reports reports.csv
"""

import csv
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import atomic_text, sole_writer

# pandas is imported inside the functions: `--help` must not wait for it.
if TYPE_CHECKING:
    import pandas as pd

    from knee_siglip.importing.files import Files
    from knee_siglip.importing.outcome import Outcome
    from knee_siglip.importing.work import Options

FILLED = 0.15
"""Share of the rows of a split that `--split` adds to those that a set ships."""


def import_data(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A table, or a folder: a data set, classes, DICOMs.")
    ],
    out_csv: Annotated[Path, typer.Argument(metavar="OUT.csv", help="The project's CSV; its report lies beside it.")],
    layout: Annotated[
        str | None, typer.Option("--layout", help="A known layout, or a YAML file. None: detected.")
    ] = None,
    maps: Annotated[
        list[str] | None, typer.Option("--map", help="OURS=THEIRS: a column, or a template {a}/{b}; repeatable.")
    ] = None,
    joins: Annotated[
        list[str] | None, typer.Option("--join", help="FILE[:COLUMN[=ITS_COLUMN]]: another table; repeatable.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the images. None: the source's.")] = None,
    reports: Annotated[Path | None, typer.Option("--reports", help="A table, or a folder of text files.")] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Compose impressions, as '{diagnosis} of the {side} knee.'")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="Regular expression over image paths: (?P<patient_id>[0-9]+)_ ...")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of the tables. None: UTF-8, else cp1252.")] = None,
    sheet: Annotated[str | None, typer.Option("--sheet", help="Of a workbook.")] = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep_ids", help="Copy patient and study ids of DICOM headers instead of pseudonyms.")
    ] = False,
    split: Annotated[
        bool, typer.Option("--split", help="Make the splits that the source lacks; patients stay whole.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of --split.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.csv.")] = False,
) -> None:
    """Turn a data set into the project's CSV, and report what was mapped, joined, composed and dropped."""
    from knee_siglip.importing.work import Options

    options = Options(
        *(source, out_csv, layout, _pairs(maps or []), tuple(joins or ()), images, reports, template, pattern),
        *(keep_ids, encoding, sheet),
    )
    with sole_writer(out_csv):
        _check_output(out_csv, source, overwrite)
        _import(options, seed if split else None)


def _import(options: "Options", split_seed: int | None) -> None:
    """Write the CSV and its report, and show it. split_seed: None leaves the splits as the source has them."""
    from knee_siglip.importing.importer import import_data as run
    from knee_siglip.importing.outcome import show, write_outcome

    out_csv = options.out
    table, outcome, files = run(options)
    table = table.assign(img_path=_seen_from(table["img_path"].tolist(), files, out_csv.parent))
    if split_seed is not None:
        table = _fill_splits(table, split_seed, outcome)
    outcome.next = _next_steps(table, out_csv, outcome.task)
    write_outcome(outcome, out_csv)
    with atomic_text(out_csv) as file:  # last: where it is, so is its report
        table.to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    show(outcome, out_csv)


def _check_output(out_csv: Path, source: Path, overwrite: bool) -> None:
    if out_csv.is_dir() or out_csv.suffix.lower() != ".csv":
        raise UsageError(f"{out_csv} must be the name of a new file that ends with .csv")
    if not out_csv.parent.is_dir():
        raise UsageError(f"the folder {out_csv.parent} does not exist; make it, or name another file")
    if out_csv.exists() and source.exists() and out_csv.samefile(source):
        raise UsageError(f"{out_csv} is the source itself, which is never changed; name another file")
    if out_csv.exists() and not overwrite:
        raise UsageError(f"{out_csv} exists; name another file, or replace it with --overwrite")


def _pairs(texts: list[str]) -> dict[str, str]:
    """`ours=theirs` of every `--map`."""
    pairs = {}
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not equals or not theirs:
            raise UsageError(f"--map {text}: write OURS=THEIRS, such as patient_id=PatNr")
        pairs[ours.strip()] = theirs
    return pairs


def _seen_from(names: list[str], files: "Files", folder: Path) -> list[str]:
    """Images' paths for the CSV: relative where they lie below its folder, so that both can move, else absolute.

    Raises:
        UsageError: a path is no Unicode text, as a CSV needs it.
    """
    root, start = files.root.resolve(), folder.resolve()
    base = Path(os.path.relpath(root, start)) if root.is_relative_to(start) else root
    prefix = "" if base == Path() else f"{base.as_posix()}/"
    paths = [f"{prefix}{name}" for name in names]
    if broken := next((path for path in paths if any("\ud800" <= char <= "\udfff" for char in path)), None):
        raise UsageError(f"{os.fsencode(broken)!r} is no Unicode text, as a CSV needs it; rename the file or folder")
    return paths


def _fill_splits(table: "pd.DataFrame", seed: int, outcome: "Outcome") -> "pd.DataFrame":
    """The table with every split: rows that a set ships in val or test stay there, and train gives what is missing."""
    from knee_siglip.cli.split.assignment import Shares, split_table
    from knee_siglip.tables.manifest import SPLITS

    given = table.get("split")
    missing = [name for name in SPLITS if given is None or not (given == name).any()]
    if given is not None and not missing:
        outcome.note("--split: the set's own splits are complete and stay as they are")
        return _with_rest(table, outcome)
    free = table if given is None else table[~given.isin([name for name in SPLITS[1:] if name not in missing])]
    links = [free["img_path"]]
    if missing == list(SPLITS) or set(missing) == {"val", "test"}:
        done, warnings = split_table(free, Shares(FILLED, FILLED), seed=seed, links=links)
        parts = done["split"]
    else:  # half of the share each to val and test, which are one here
        done, warnings = split_table(free, Shares(FILLED / 2, FILLED / 2), seed=seed, links=links)
        parts = done["split"].where(done["split"] == "train", missing[0])
    for warning in warnings:
        outcome.note(warning.replace("--patient_id_pattern, a", "--pattern with the group patient_id, a"))
    how = "drawn with patients kept whole" if given is None else f"train gave {' and '.join(missing)}, patients whole"
    outcome.mapped("split", "--split", how)
    whole = parts.reindex(table.index) if given is None else parts.reindex(table.index).fillna(given)
    table = table.assign(split=whole)
    outcome.splits = {name: int((whole == name).sum()) for name in SPLITS}
    first = [name for name in ("img_path", "impression", "split") if name in table]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _with_rest(table: "pd.DataFrame", outcome: "Outcome") -> "pd.DataFrame":
    """The table of all three splits with a split for the rows that have none: their patient's, else train."""
    from knee_siglip.tables.ids import independent_units

    rest = table["split"] == ""
    if not rest.any():
        return table
    units = independent_units(table).numbers
    known = table.loc[~rest, "split"].groupby(units[~rest.to_numpy()]).first()
    filled = table["split"].mask(rest, [known.get(unit, "train") for unit in units])
    outcome.note(f"--split: {int(rest.sum()):,} rows without a split are in that of their patient, else in train")
    outcome.splits = {str(name): int(count) for name, count in filled.value_counts().items()}
    return table.assign(split=filled)


def _next_steps(table: "pd.DataFrame", out_csv: Path, task: str | None) -> list[str]:
    from knee_siglip.tables.manifest import SPLITS

    missing = [name for name in SPLITS if "split" not in table or not (table["split"] == name).any()]
    if missing:
        lacking = "no split" if len(missing) == len(SPLITS) else f"no row in {' and '.join(missing)}"
        return [f"Next: it has {lacking}; give the same command with --split --overwrite (or: knee-siglip split)."]
    if count := int((table["split"] == "").sum()):
        return [f"Next: {count:,} rows have no split; give the same command with --split --overwrite."]
    images = os.path.commonpath([(out_csv.parent / name).absolute().parent for name in table["img_path"]])
    in_project = Path("dvc.yaml").is_file()  # else the command is typed in another folder
    named = {"data.csv": out_csv if in_project else out_csv.absolute(), "data.images": images}
    settings = [f"-S {name}={shlex.quote(str(path))}" for name, path in named.items()]
    return [f"Next: dvc exp run {' '.join([*settings, *([f'-S task=tasks/{task}.yaml'] if task else [])])}"]
