"""One tracker that fans out to DVCLive, MLflow and W&B; none of them can stop, block or slow the run.

Everything is appended to the run's own log first (`runlog`), which is the truth; one process per tracker (`sender`)
follows it. What a tracker missed can be sent later with `resend`.
"""

import logging
import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from knee_siglip.core.errors import Interrupted, UserError
from knee_siglip.core.files import sha256
from knee_siglip.core.nesting import flatten
from knee_siglip.core.paths import TRAIN_REPORT, tracking_root
from knee_siglip.core.processes import is_first_process
from knee_siglip.params.sections import Params, TrackingParams
from knee_siglip.tracking.process import Orders, SenderProcess, end_senders, start_senders
from knee_siglip.tracking.runlog import (
    Event,
    RunLog,
    encode_values,
    last_step,
    read_pointer,
    tracking_folder,
    write_pointer,
)

SECONDS_TO_END = 30.0
SECONDS_TO_RESEND = 600.0
COPIED_BYTES_PER_SECOND = 10e6  # a copied checkpoint may take longer

_logger = logging.getLogger(__name__)


class Tracker:
    """Logs one session of a run. Leaving the context ends it: FINISHED, FAILED (an exception) or KILLED (a signal)."""

    def __init__(self, log: RunLog, checkpoints: str, step: int) -> None:
        self.run_id = log.run_id
        self._log = log
        self._senders: list[SenderProcess] = []
        self._checkpoints = checkpoints
        self._step = step
        self._copied_bytes = 0
        self._closed = False
        self._writable = True

    def start(self, description: Event, orders: list[Orders]) -> None:
        """Write the first event, which the senders look for, and start them."""
        if self._write("start", **description):
            self._senders = start_senders(orders)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, dotted names (`train.loss`). Costs microseconds: per step is fine. Steps must not fall."""
        self._step = max(self._step, step)
        self._write("metrics", values=encode_values(values), step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Final values as in metrics.json, flat or nested; only numbers are logged."""
        self._write("summary", values=encode_values(flatten(dict(values))), step=self._step)

    def log_artifact(self, path: Path, kind: str) -> None:
        """Log a file that stays as it is until the tracker is closed. `kind` is model, figure, table ...

        A model goes by `tracking.log_checkpoints`: a copy, a reference (path and sha256), or not at all.
        """
        how = self._checkpoints if kind == "model" else "copy"
        if how == "none":
            return
        if not path.is_file():
            _logger.warning("%s does not exist and was not logged as %s", path, kind)
            return
        self._copied_bytes += path.stat().st_size if how == "copy" else 0
        self._write("artifact", path=str(path.resolve()), kind=kind, how=how)

    def close(self, status: str = "FINISHED") -> None:
        """End the run in all trackers; those not done in half a minute are killed."""
        if not self._closed:
            self._closed = True
            self._write("end", status=status)
            end_senders(self._senders, SECONDS_TO_END + self._copied_bytes / COPIED_BYTES_PER_SECOND)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.close("FINISHED")
        else:
            failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
            self.close("FAILED" if failed else "KILLED")

    def _write(self, event: str, **fields: Any) -> bool:
        """Append to the log and drop the senders that failed. A full disk costs the tracking, not the run."""
        if not self._writable:
            return False
        try:
            self._log.write(event, **fields)
        except OSError as error:
            self._writable = False
            _logger.warning("%s cannot be written (%s); the run continues without tracking", self._log.path, error)
        self._senders = [sender for sender in self._senders if not sender.warn_if_failed()]
        return self._writable


def open_tracker(
    params: Params,
    *,
    stage: str,
    facts: Mapping[str, Any],
    run_key: str | None = None,
    live_folder: Path = TRAIN_REPORT / "live",
) -> Tracker:
    """Start a run; the trackers of `params.tracking` start beside it, DVCLive for the stage `train` only.

    `facts` (dataset statistics, parameter counts, `data_hash`) are shown beside the params. `run_key`: opening
    with the key of an unfinished run resumes it.
    """
    run_id = read_pointer(run_key) if run_key else None
    if run_id is None or _finished(run_id):
        run_id = _new_run_id()
        if run_key:
            _remember(run_key, run_id)
    return _start(params, stage, facts, run_id, live_folder.resolve() if stage == "train" else None)


def attach_tracker(params: Params, *, stage: str, model_path: Path) -> Tracker:
    """Attach to the run that trained this model file, found by its sha256; a new run where it is unknown."""
    return _start(params, stage, {}, read_pointer(sha256(model_path)) or _new_run_id(), live=None)


def remember_run(tracker: Tracker, model_path: Path) -> None:
    """Note that this run wrote this model file, for `attach_tracker`."""
    _remember(sha256(model_path), tracker.run_id)


def resend(log_path: Path, params: Params) -> bool:
    """Send a whole log to the trackers of `params.tracking` again; returns whether all succeeded.

    MLflow gets what it lacks; W&B gets the run anew, under the same id.
    """
    log = RunLog(log_path.resolve(), session="")
    sessions = dict.fromkeys(event["session"] for event in log.read() if event["event"] == "start")
    failed = 0
    for session in sessions:
        senders = start_senders(_orders(params.tracking, RunLog(log.path, session), live=None))
        failed += end_senders(senders, SECONDS_TO_RESEND)
    return failed == 0


def _start(params: Params, stage: str, facts: Mapping[str, Any], run_id: str, live: Path | None) -> Tracker:
    """Write the session's first event, then start the senders, which read it. Of several processes the first logs."""
    first = is_first_process()
    folder = tracking_folder()
    log = RunLog(folder / f"{run_id}.jsonl" if first else Path(os.devnull), f"{stage}-{secrets.token_hex(4)}")
    tracker = Tracker(log, params.tracking.log_checkpoints, last_step(log.read()))
    tracker.start(_describe(params, stage, facts, run_id), _orders(params.tracking, log, live) if first else [])
    return tracker


def _describe(params: Params, stage: str, facts: Mapping[str, Any], run_id: str) -> Event:
    """What the trackers show of a run beside its values.

    Params of `tracking` are left out: they say nothing about the experiment, and a URI may hold a password.
    """
    tags = {
        "DVC_EXP_NAME": os.environ.get("DVC_EXP_NAME"),
        "git_revision": git_revision(),
        "data_hash": facts.get("data_hash"),
        "stage": stage,
    }
    config = {**flatten(dict(facts)), **params.flat()}
    name = params.tracking.experiment_name or tags["DVC_EXP_NAME"] or run_id
    return {
        "run": run_id,
        "name": name,
        "project": params.tracking.project_name,
        "stage": stage,
        "tags": {key: str(value) for key, value in tags.items() if value},
        "config": {key: value for key, value in config.items() if not key.startswith("tracking.")},
    }


def _orders(tracking: TrackingParams, log: RunLog, live: Path | None) -> list[Orders]:
    """One sender's orders for each tracker that is on."""
    root = tracking_root().resolve()
    options: dict[str, dict[str, Any]] = {}
    if live:
        live.mkdir(parents=True, exist_ok=True)  # a DVC out must exist even when DVCLive fails
        options["dvclive"] = {"folder": str(live)}
    if tracking.mlflow != "none":
        uri = tracking.mlflow
        if uri == "auto":
            uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db"
        folder = root / "mlartifacts" / re.sub(r"[^\w.-]", "_", tracking.project_name)
        options["mlflow"] = {"uri": uri, "artifacts": folder.as_uri() if uri.startswith("sqlite") else None}
    if tracking.wandb != "none":
        options["wandb"] = {"folder": str(root), "mode": tracking.wandb}
    return [Orders(name, str(log.path), log.session, settings) for name, settings in options.items()]


def _new_run_id() -> str:
    """Sortable by time, unique, and allowed as a W&B id. Takes nothing from the seeded random generators."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def _finished(run_id: str) -> bool:
    events = RunLog(tracking_folder() / f"{run_id}.jsonl", session="").read()
    return any(event["event"] == "end" and event["status"] == "FINISHED" for event in events)


def _remember(key: str, run_id: str) -> None:
    if not is_first_process():
        return
    try:
        write_pointer(key, run_id)
    except UserError as error:
        _logger.warning("run %s cannot be remembered (%s); later stages will open a run of their own", run_id, error)


def git_revision() -> str | None:
    """The commit of the current folder; None outside a repository."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
