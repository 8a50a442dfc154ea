"""`knee-siglip store`: look after the store of decoded pixels and vision features.

    knee-siglip store show
    knee-siglip store prune --older_than 30 --yes
    knee-siglip store verify --repair
    knee-siglip store pack knees.tar            (then, on a machine without the originals:)
    knee-siglip store unpack knees.tar

It is $KNEE_SIGLIP_STORE, else the project's `.store`, and outside a project a folder in the user's cache.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knee_siglip.core import paths
from knee_siglip.core.cells import echo
from knee_siglip.core.errors import EXIT_FAILED, UsageError
from knee_siglip.report.html.numbers import plural

# numpy and pandas are imported inside the commands: `--help` must not wait for them.
if TYPE_CHECKING:
    from rich.table import Table

    from knee_siglip.cli.store.care import StoredRows
    from knee_siglip.cli.store.travel import CacheFiles, OnDifference

app = typer.Typer(
    no_args_is_help=True,
    help="Manage the store of decoded images and frozen features, shared by all experiments.",
)

ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help=f"None: {paths.MANIFEST} in the project.", show_default=False)
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help=f"cache.json, beside it index.parquet. None: {paths.CACHE_FACTS} in the project.",
        show_default=False,
    ),
]


@app.command()
def show(cache: CacheOption = None) -> None:
    """List the store's contents: images, size, last use, and whether the project uses them now."""
    from knee_siglip.cli.store.care import list_stored

    root = paths.store_root()
    found, remains = list_stored(root, cache or _in_project(paths.CACHE_FACTS)), _remains(root)
    total = _gigabytes(_print(found, remains))
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = _gigabytes(shutil.disk_usage(existing).free)
    echo(f"{root}: {total} in {plural(len(found) + len(remains), 'folder')}, {free} free on its disk")


@app.command()
def prune(
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older_than", min=0, help="Also what was unused for this many days, unfinished trainings and pages too."
        ),
    ] = None,
    all_but_current: Annotated[
        bool, typer.Option("--all_but_current", help="Also everything that the project does not use now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove. Without it, only list what would be removed.")] = False,
    cache: CacheOption = None,
) -> None:
    """Remove pixels and features made by other versions of knee-siglip, and what the options add.

    What the project uses now is kept. What another experiment needs is made again.
    """
    from knee_siglip.cli.store.care import choose_prunable, list_stored, remove_stored

    root = paths.store_root()
    chosen = choose_prunable(list_stored(root, cache or _in_project(paths.CACHE_FACTS)), older_than, all_but_current)
    limit = datetime.min if older_than is None else datetime.now() - timedelta(days=older_than)
    remains = [each for each in _remains(root) if each.last_used < limit]
    if not chosen and not remains:
        echo("nothing to prune")
        return
    freed = _gigabytes(_print(chosen, remains))
    if not yes:
        echo(f"{freed} would be freed; nothing was removed: add --yes")
        return
    for stored in chosen:
        remove_stored(stored)
    for each in remains:
        each.remove()
    echo(f"{freed} freed")


@app.command()
def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged images: the next run makes them again.")
    ] = False,
) -> None:
    """Check the hashes of all pixels and features (exit code 1: damage found and not repaired)."""
    from knee_siglip.cli.store.care import find_damaged, list_stored, remove_damaged_images

    wrong = 0
    for stored in list_stored(paths.store_root(), _in_project(paths.CACHE_FACTS)):
        damaged = find_damaged(stored)
        wrong += len(damaged) + stored.lost
        found = f"{plural(stored.images, 'image')}, {len(damaged)} damaged, {stored.lost} lost (cut off)"
        echo(f"{stored.kind} {stored.folder.name}: {found}")
        for image_id in damaged:
            echo(f"  {image_id}")
        if repair and (damaged or stored.lost):
            remove_damaged_images(stored, damaged)
    if wrong and not repair:
        echo("add --repair to remove them; the next run makes them again")
        raise typer.Exit(EXIT_FAILED)


@app.command()
def pack(
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write.")],
    manifest: ManifestOption = None,
    cache: CacheOption = None,
) -> None:
    """Write the pixels of the manifest's images into one file, to train on a machine without the originals."""
    from knee_siglip.cli.store.travel import pack as pack_store

    images = pack_store(_pixel_root(), _cache_files(manifest, cache), out)
    echo(f"{out}: {plural(images, 'image')}, {_gigabytes(out.stat().st_size)}")


@app.command()
def unpack(
    source: Annotated[Path, typer.Argument(metavar="IN.tar", help="What `store pack` wrote.")],
    manifest: ManifestOption = None,
    cache: CacheOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a manifest and cache that differ from the packed ones.")
    ] = False,
    pixels_only: Annotated[bool, typer.Option("--pixels_only", help="Leave the manifest and the cache alone.")] = False,
) -> None:
    """Add packed pixels to the store, and the manifest and cache to the project."""
    from knee_siglip.cli.store.travel import unpack as unpack_store

    if overwrite and pixels_only:
        raise UsageError("--overwrite and --pixels_only exclude each other")
    on_difference: OnDifference = "overwrite" if overwrite else "leave" if pixels_only else "refuse"
    done = unpack_store(source, _pixel_root(), _cache_files(manifest, cache), on_difference)
    echo(f"{plural(done.images, 'image')}, {done.added} of them new in {_pixel_root()}")
    for path in done.files:
        echo(f"wrote {path}")


def _pixel_root() -> Path:
    return paths.store_root() / paths.PIXELS


def _in_project(path: Path) -> Path:
    root = paths.project_root()
    return root / path if root else path


def _cache_files(manifest: Path | None, cache: Path | None) -> "CacheFiles":
    from knee_siglip.cli.store.travel import CacheFiles

    facts = cache or _in_project(paths.CACHE_FACTS)
    return CacheFiles(manifest or _in_project(paths.MANIFEST), facts.with_name(paths.CACHE_INDEX.name), facts)


def _table(found: "list[StoredRows]") -> "Table":
    """Fits 80 columns: only the description is folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table("content", show_lines=True)
    for title in ("images", "size", "last used", "state"):
        table.add_column(title, no_wrap=True)
    for stored in found:
        table.add_row(
            Text(f"{stored.kind} {stored.folder.name}\n{_describe(stored.facts)}"),
            str(stored.images),
            _gigabytes(stored.bytes),
            f"{stored.last_used:%Y-%m-%d}" if stored.last_used else "?",
            "in use" if stored.current else "kept" if stored.usable else "other version",
        )
    return table


@dataclass(frozen=True)
class _Remains:
    """What a failed run left in the store. remove: takes it away, or raises `UserError` where it is in use."""

    text: str
    bytes: int
    last_used: datetime
    remove: Callable[[], None]


def _remains(root: Path) -> list[_Remains]:
    """Unfinished trainings, and the validation pages of failed runs."""
    from knee_siglip.training.unfinished import remove_unfinished, unfinished_runs

    found = []
    for run in unfinished_runs(root / paths.RUNS):
        state = "before its first state" if run.step is None else f"saved at step {run.step}"
        used = f"{_gigabytes(run.bytes)}, last used {run.last_used:%Y-%m-%d}"
        text = f"unfinished training {run.folder.name[:12]}: {state}, {used}"
        found.append(_Remains(text, run.bytes, run.last_used, partial(remove_unfinished, run)))
    for page in sorted((root / paths.FAILED).glob("*/index.html")):
        written = datetime.fromtimestamp(page.stat().st_mtime)
        text = f"validation page of the failed run {page.parent.name}: {page}, {written:%Y-%m-%d}"
        remove = partial(shutil.rmtree, page.parent, ignore_errors=True)
        found.append(_Remains(text, page.stat().st_size, written, remove))
    return found


def _print(stored: "list[StoredRows]", remains: list[_Remains]) -> int:
    """List both; returns their bytes."""
    from knee_siglip.core.terminal import Terminal

    if stored:
        Terminal().print(_table(stored))
    for each in remains:
        echo(each.text)
    return sum(rows.bytes for rows in stored) + sum(each.bytes for each in remains)


def _describe(facts: dict[str, Any]) -> str:
    """What the rows are made with, long hashes cut."""
    listed = ", ".join(f"{key} {value}" for key, value in facts.items())
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", listed)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
