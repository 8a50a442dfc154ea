"""`knee-siglip sync`: send to MLflow and W&B what they missed."""

from pathlib import Path
from typing import Annotated

import typer

from knee_siglip.core import paths
from knee_siglip.core.cells import echo
from knee_siglip.core.errors import EXIT_FAILED
from knee_siglip.core.files import lock
from knee_siglip.core.metrics_file import read_json
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.tracking.process import TITLES
from knee_siglip.tracking.records import Record
from knee_siglip.tracking.runlog import read_pointer, tracking_folder
from knee_siglip.tracking.sync import Pending, deliver, find_logs, find_pending, tracker_ids


def sync(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids or names of runs. None: all.", show_default=False)
    ] = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Only show what is pending, and this workspace's run.")
    ] = False,
) -> None:
    """Send to MLflow and W&B what they missed of earlier runs (exit code 1: not all of it could be sent).

    Nothing is sent twice. Runs of `dvc exp run --queue` and `--temp` and killed runs count too.
    """
    folder, root = tracking_folder(), paths.tracking_root()
    if only_list:
        pending = _show_pending(folder, runs or [])
        echo(f"{len(pending)} pending" if pending else "nothing is pending")
        _show_workspace(root / paths.EVALUATION_REPORT, folder)
        return
    tracking = (load_params(root / paths.PARAMS) if (root / paths.PARAMS).is_file() else Params()).tracking
    with lock(folder / "sync.lock", "sending runs to the trackers", wait=0):
        pending = _show_pending(folder, runs or [])
        failed = deliver(pending, tracking, root)
    for backend in {one.backend for one in failed if getattr(tracking, one.backend) == "none"}:
        echo(f"{TITLES[backend]} is off now (tracking.{backend}: none)")
    echo(f"{len(pending) - len(failed)} of {len(pending)} sent" if pending else "nothing is pending")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _show_pending(folder: Path, runs: list[str]) -> list[Pending]:
    pending = find_pending(find_logs(folder, runs))
    for one in pending:
        echo(str(one))
    return pending


def _show_workspace(report: Path, folder: Path) -> None:
    """Show which run the figures in reports/evaluation/ are, also after `dvc exp apply` or from the run cache."""
    facts, figures = read_json(report / "facts.json"), read_json(report / "metrics.json")
    if not facts or not figures:
        return
    record = Record.of("evaluate", facts["model_sha256"], facts["params"], figures)
    for title, key in (("model", record.model), ("evaluation", record.key)):
        run = read_pointer(key)
        where = ", ".join(f"{name} {known}" for name, known in tracker_ids(folder / f"{run}.jsonl").items())
        echo(f"this workspace's {title}: " + (f"run {run} ({where})" if run else "of no run that is known here"))
