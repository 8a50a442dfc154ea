"""The command `knee-siglip compare`: two models on the same test rows, with intervals and p-values.

knee-siglip compare main my-experiment
knee-siglip compare HEAD workspace --metric zero_shot_kl.accuracy
knee-siglip compare a/predictions.parquet b/predictions.parquet --split val --json
knee-siglip compare --a s0 s1 s2 --b t0 t1 t2
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from knee_siglip.core import paths
from knee_siglip.core.cells import echo
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.core.files import atomic_text, sole_writer

# pandas and dvc are imported inside the functions: `--help` must not wait for them.
if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from knee_siglip.cli.compare.comparison import Comparison

WORKSPACE = "workspace"
PLAIN_WIDTH = 110
"""Columns where the output goes to a file or a pipe; two runs need 97 of them."""

RUNS_FLAGS = ("--a", "--b")
Sides = tuple[list[str], list[str]]
"""The names of the runs of A and of B."""

REVISION_HELP = "Git revision, branch, tag, DVC experiment, `workspace`, or a predictions.parquet."


class ListedRuns(TyperCommand):
    """Takes `--a s0 s1 s2` as `--a s0 --a s1 --a s2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values."""
        repeated: list[str] = []
        flag = ""
        for arg in args:
            if arg.startswith("-"):
                flag = arg if arg in RUNS_FLAGS else ""
                repeated += [] if flag else [arg]
            else:
                repeated += [flag, arg] if flag else [arg]
        return super().parse_args(ctx, repeated)


def compare(
    rev_a: Annotated[str | None, typer.Argument(metavar="REV_A", help=REVISION_HELP)] = None,
    rev_b: Annotated[str | None, typer.Argument(metavar="REV_B", help="What is compared with it.")] = None,
    runs_a: Annotated[
        list[str] | None, typer.Option("--a", help="Several trainings in place of REV_A: --a s0 s1 s2.")
    ] = None,
    runs_b: Annotated[list[str] | None, typer.Option("--b", help="The same in place of REV_B.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which evaluated split.")] = "test",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A headline metric, repeatable. None: all of them.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file, unrounded.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say by how much REV_B is better than REV_A on the same rows, and whether that may be chance.

    With several trainings a side, which differ in their seed, the chance of training counts too.
    """
    from knee_siglip.cli.compare.comparison import compare as compare_tables

    sides = _asked_sides((rev_a, rev_b), (runs_a, runs_b))
    if csv and (csv.is_dir() or not csv.absolute().parent.is_dir()):
        raise UsageError(f"--csv {csv} is a folder, or lies in one that does not exist; name a file")
    with sole_writer(csv) if csv else nullcontext():
        a, b = [[rows_of_split(rev, split) for rev in side] for side in sides]
        comparisons = compare_tables(a, b, metric or ())
        if csv:
            import pandas as pd

            with atomic_text(csv) as file:
                pd.DataFrame([asdict(row) for row in comparisons]).to_csv(file, index=False, lineterminator="\n")
    facts = _facts(a[0], split)
    if as_json:
        named = {name: side if len(side) > 1 else side[0] for name, side in zip("ab", sides, strict=True)}
        echo(json.dumps(named | facts | {"metrics": [asdict(row) for row in comparisons]}, indent=2))
    else:
        _show(comparisons, sides, facts)


def _asked_sides(revs: tuple[str | None, str | None], runs: tuple[list[str] | None, list[str] | None]) -> Sides:
    """The names of each side's runs.

    Raises:
        UsageError: a side is missing or named in both ways, or a run is named twice on one side.
    """
    listed = [side for side in runs if side]
    named = [[rev] for rev in revs if rev is not None]
    if len(listed) + len(named) != 2 or len(listed) == 1:
        raise UsageError("name two runs (REV_A REV_B), or the runs of both sides: --a s0 s1 s2 --b t0 t1 t2")
    first, second = listed or named
    for side in (first, second):
        if twice := [rev for rev in side if side.count(rev) > 1]:
            raise UsageError(f"{twice[0]} is named twice on one side; its runs must differ in their seed")
    return first, second


def rows_of_split(rev: str, split: str) -> "pd.DataFrame":
    """The predictions of one split.

    Raises:
        UserError: `rev` or its predictions cannot be found or read, or hold no row of the split.
    """
    from knee_siglip.cli.compare.comparison import read_predictions

    table = read_predictions(_find_predictions(rev), f"the predictions of {rev}")
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        there = ", ".join(sorted(set(table["split"]))) or "none"
        raise UserError(f"{rev}: no predictions of the split {split}; there are: {there} (evaluate.splits)")
    return rows


def _find_predictions(rev: str) -> Path | BytesIO:
    """A file, or the bytes of the file at a revision."""
    if Path(rev).suffix == paths.PREDICTIONS.suffix:
        return _existing(Path(rev), "name a predictions.parquet, or a revision")
    root = paths.project_root()
    if root is None:
        raise UsageError(f"{rev}: there is no DVC project here whose revision it could be; name two .parquet files")
    if rev == WORKSPACE:
        return _existing(root / paths.PREDICTIONS, "make it: dvc repro evaluate (or dvc checkout)")
    return BytesIO(read_at(root, rev, paths.PREDICTIONS))


def _existing(path: Path, advice: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist; {advice}")
    return path


def read_at(root: Path, rev: str, path: Path) -> bytes:
    """A file of a git revision or experiment: from git, DVC's cache, else from its remote.

    Raises:
        UserError: there is no such revision, or its file is nowhere.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    name = path.as_posix()
    try:
        files = DVCFileSystem(str(root), rev=rev)
        try:
            files.info(name)  # unlike `exists` not silent about a wrong revision
        except FileNotFoundError:
            raise UserError(f"{rev} has no {name}: it was evaluated by an older version, or not at all") from None
        content: bytes = files.read_bytes(name)
    except RevError:
        raise UsageError(
            f"{rev} is no git revision, branch or tag, no DVC experiment (dvc exp list), nor a .parquet file"
        ) from None
    except FileNotFoundError:
        raise UserError(
            f"{path.stem} of {rev}: neither in DVC's cache nor in a remote; fetch them where they were made and "
            "pushed (dvc fetch --all-commits, dvc exp pull), or evaluate that revision again (dvc repro evaluate)"
        ) from None
    except (DvcException, OSError) as error:
        raise UserError(f"{path.stem} of {rev} cannot be read through DVC: {error}") from None
    return content


def _facts(rows: "pd.DataFrame", split: str) -> dict[str, str | int]:
    from knee_siglip.metrics.bootstrap import RESAMPLES
    from knee_siglip.tables.ids import UNIT_COUNTS, independent_units

    units = independent_units(rows)
    counts = {UNIT_COUNTS[unit]: count for unit, count in units.counts.items() if count or unit == "patient"}
    return {"split": split, "rows": len(rows), **counts, "units": str(units), "resamples": RESAMPLES}


def _show(comparisons: Sequence["Comparison"], sides: Sides, facts: dict[str, str | int]) -> None:
    """One table on stdout, within `PLAIN_WIDTH` columns."""
    from knee_siglip.core.terminal import Terminal

    console = Terminal()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    several = any(len(side) > 1 for side in sides)
    for name, side in zip("AB", sides, strict=True):
        mean = f" (mean of {len(side)}; sd: their standard deviation)" if len(side) > 1 else ""
        echo(f"{name}: {', '.join(side)}{mean}")
    echo(f"{facts['rows']} rows of {facts['units']}, split {facts['split']}")
    console.print(_table(comparisons, several), highlight=False)
    for line in _notes(comparisons, sides, int(facts["resamples"])):
        echo(line)


def _table(comparisons: Sequence["Comparison"], several: bool) -> "Table":
    from rich import box
    from rich.table import Column, Table

    adjusted = f"p (Holm,\n{sum(row.p is not None for row in comparisons)} metrics)"
    table = Table(
        Column("metric", overflow="fold"), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    values = ("A", "sd", "B", "sd") if several else ("A", "B")
    for title in (*values, "B - A", "95 % interval", "p", adjusted):
        table.add_column(title, justify="right", no_wrap=True)
    for row in comparisons:
        cells = [f"{row.value_a:.3f}", f"{row.value_b:.3f}"]
        if several:
            cells = [cells[0], _spread(row.spread_a), cells[1], _spread(row.spread_b)]
        table.add_row(row.metric, *cells, f"{row.difference:+.3f}", *_certainty(row))
    return table


def _spread(deviation: float | None) -> str:
    """Without the leading 0, which the table has no room for."""
    return "-" if deviation is None else f"{deviation:.3f}".removeprefix("0")


def _notes(comparisons: Sequence["Comparison"], sides: Sides, resamples: int) -> Iterator[str]:
    """What the table rests on, a line each."""
    from knee_siglip.metrics.units import FEWEST_UNITS

    several = any(len(side) > 1 for side in sides)
    of_runs = ", and of runs; Student's t" if several else ""
    yield f"Intervals and p: {resamples:,} resamples of patients, the same for A and B{of_runs}; p is two-sided."
    if single := [name for name, side in zip("AB", sides, strict=True) if len(side) == 1]:
        runs = "One training each" if len(single) == 2 else f"{single[0]} is one training"
        yield f"{runs}: the chance of another seed is not in the interval (--a s0 s1 s2 --b t0 t1 t2)."
    if few := [row.metric for row in comparisons if row.p is None]:
        yield (
            f"Too few: an interval and p need {FEWEST_UNITS} patients, of each class where classes are told apart: "
            f"{', '.join(few)}."
        )
    yield "p (Holm): adjusted for the number of metrics looked at; 0.05 is the usual limit for it."


def _certainty(row: "Comparison") -> tuple[str, str, str]:
    """Interval and both p-values of a row of the table."""
    if row.low is None or row.high is None or row.p is None or row.p_holm is None:
        return f"too few ({row.units})", "-", "-"
    return f"{row.low:+.3f} to {row.high:+.3f}", f"{row.p:.3f}", f"{row.p_holm:.3f}"
