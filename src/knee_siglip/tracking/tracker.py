"""One tracker that fans out to DVCLive, MLflow and W&B; none of them can stop, block or slow the run.

Everything is appended to the run's own log first (`runlog`), which is the truth; one process per tracker (`sender`)
follows it. What a tracker missed is sent later by `sync`, for which the log's files are kept beside it.
"""

import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from knee_siglip.core.errors import Interrupted, UserError
from knee_siglip.core.files import is_first_process, link_or_copy, sha256
from knee_siglip.core.nesting import flatten
from knee_siglip.core.paths import TRAIN_REPORT, tracking_root
from knee_siglip.params.sections import Params, TrackingParams
from knee_siglip.tracking.privacy import KINDS, is_remote, level_for
from knee_siglip.tracking.process import Orders, SenderProcess, end_senders, start_senders
from knee_siglip.tracking.records import Record, describe, find_run, new_run_id
from knee_siglip.tracking.runlog import (
    Event,
    RunLog,
    checksums,
    encode_values,
    in_use,
    last_step,
    read_pointer,
    session_starts,
    tracking_folder,
    undelivered,
    write_pointer,
)

SECONDS_LOCAL, SECONDS_REMOTE, SECONDS_CURVES = 120.0, 30.0, 3600.0
"""A sender's patience: MLflow takes 8 s on two idle cores to create its database, and much longer on busy ones. The
curves of DVCLive are an out of the stage, so that a part of them would be wrong in silence.
"""

SECONDS_KILLED = 10.0
"""Of waiting at the end of a run that was told to stop: batch systems kill soon after. What is missed is sent later."""

NICENESS = 5
"""Of the senders beside a training. Other stages log when their work is done, and wait for theirs."""

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
        self._warned = False
        self._in_use = ExitStack()

    def start(self, description: Event, orders: list[Orders]) -> None:
        """Write the first event, which the senders look for, and start them."""
        backends = [order.backend for order in orders if order.backend != "dvclive"]
        in_wandb = any(order.backend == "wandb" and order.kinds for order in orders)
        if self._write("start", backends=backends, keeps_files=in_wandb, **description):
            if self._log.path != Path(os.devnull):
                self._in_use.enter_context(in_use(self._log.path))
            self._senders = start_senders(orders)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, dotted names (`train.loss`). Costs microseconds: per step is fine. Steps must not fall."""
        self._step = max(self._step, step)
        self._write("metrics", values=encode_values(values), step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Final values as in metrics.json, flat or nested; only numbers are logged."""
        self._write("summary", values=encode_values(flatten(dict(values))), step=self._step)

    def log_tags(self, values: Mapping[str, str]) -> None:
        """Texts about the run that were not known when it started."""
        self._write("tags", values=dict(values))

    def log_artifact(self, path: Path, kind: str, folder: str = "") -> None:
        """Log a file as it is now, into the folder of that name. `kind` is one of `privacy.KINDS`.

        Of a model `tracking.log_checkpoints` takes a copy, a reference (name and checksums), or nothing.
        """
        how = self._checkpoints if kind == "model" else "copy"
        if how == "none" or not is_first_process():
            return
        if not path.is_file():
            _logger.warning("%s does not exist and was not logged as %s", path, kind)
            return
        size = path.stat().st_size
        event: Event = {"kind": kind, "folder": folder or kind, "how": how, "bytes": size}
        if kind == "model":
            event |= {"out": str(path)} if os.environ.get("DVC_ROOT") and not path.is_absolute() else {}
            event |= checksums(path) if how == "reference" else {}  # of a kept file the sender computes them
        kept = self._keep(path, event["folder"]) if how == "copy" else path
        if kept:
            self._copied_bytes += size if how == "copy" else 0
            self._write("artifact", path=str(kept.resolve()), **event)

    def close(self, status: str = "FINISHED") -> None:
        """End the run in all trackers; those that lose their patience are killed."""
        if not self._closed:
            self._closed = True
            if not self._write("end", status=status):
                _logger.warning("%s lacks the end of this run, and so do the trackers", self._log.path)
            most = SECONDS_KILLED if status == "KILLED" else math.inf
            end_senders(self._senders, self._copied_bytes / COPIED_BYTES_PER_SECOND, most)
            self._in_use.close()
            with suppress(OSError):
                forget_files(self._log)

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

    def _keep(self, path: Path, folder: str) -> Path | None:
        """The file beside the log: the next run overwrites it, and a queued run's folder is deleted.

        A model is written once and linked; other files, which may be written in place, are copied.
        """
        target = kept_files(self._log) / self._log.session / folder / path.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if folder == "model":
                link_or_copy(path, target)
            else:
                shutil.copyfile(path, target)
        except (OSError, UserError) as error:
            _logger.warning("%s was not logged (%s); the run continues", path, error)
            return None
        return target

    def _write(self, event: str, **fields: Any) -> bool:
        """Append to the log and hear the senders. A full disk costs memory until it has room again, not the run."""
        written = False
        try:
            self._log.write(event, **fields)
            written = True
        except OSError as error:
            if not self._warned:
                text = "%s cannot be written (%s); the run continues, and it is tried again"
                _logger.warning(text, self._log.path, error)
            self._warned = True
        for sender in self._senders:
            sender.hear()
        return written


def kept_files(log: RunLog) -> Path:
    """Folder of the files that a run logged."""
    return log.path.parent / "files" / log.run_id


def forget_files(log: RunLog) -> None:
    """Remove the files of sessions that every tracker holds; W&B's offline runs refer to theirs."""
    events = log.read()
    missing = {session for backend in ("mlflow", "wandb") for session in undelivered(events, backend)}
    for session, start in session_starts(events).items():
        if session not in missing and not start.get("keeps_files", True):
            shutil.rmtree(kept_files(log) / session, ignore_errors=True)


def open_tracker(
    params: Params,
    *,
    stage: str,
    facts: Mapping[str, Any],
    run_key: str | None = None,
    has_states: bool = False,
    live_folder: Path = TRAIN_REPORT / "live",
) -> Tracker:
    """Start a run; the trackers of `params.tracking` start beside it, DVCLive for the stage `train` only.

    `facts` (dataset statistics, parameter counts, `data_hash`) are shown beside the params. `run_key`: opening
    with the key of an unfinished run resumes it. `has_states`: of this key are saved, so that it is unfinished whatever
    its log says: it was killed after its end, before its states were removed.
    """
    run_id = read_pointer(run_key) if run_key else None
    if run_id is None or (_finished(run_id) and not has_states):
        run_id = new_run_id()
        if run_key:
            _remember(run_key, run_id)
    return _start(params, stage, facts, run_id, live=live_folder.resolve() if stage == "train" else None)


def attach_tracker(
    params: Params, *, stage: str, model: str, figures: Mapping[str, Any], data_hash: str | None = None
) -> Tracker:
    """The run that these results of a model belong to: see `records`.

    model: sha256 of its file; one that was trained elsewhere gets a run joined to it by that. figures: of the stage's
    metrics.json.
    """
    record = Record.of(stage, model, params.to_dict(), figures)
    run_id, parent = find_run(record, params)
    if run_id is None:
        run_id = new_run_id()
        if parent and is_first_process():
            with suppress(OSError):
                RunLog(tracking_folder() / f"{parent}.jsonl", "").write("child", run=run_id)
    facts = {"model_sha256": model, "data_hash": data_hash, "record": record.key}
    _remember(record.key, run_id)
    if read_pointer(model) is None:  # trained elsewhere: later stages join this run
        _remember(model, run_id)
    return _start(params, stage, facts, run_id, parent)


def remember_run(tracker: Tracker, model_path: Path) -> None:
    """Note that this run wrote this model file, for `attach_tracker`."""
    model = sha256(model_path)
    before = read_pointer(model)
    same = {"same_model_as": before} if before and before != tracker.run_id else {}  # DVC will not evaluate it again
    tracker.log_tags({"model_sha256": model, **same})
    _remember(model, tracker.run_id)


def _start(
    params: Params,
    stage: str,
    facts: Mapping[str, Any],
    run_id: str,
    parent: str | None = None,
    live: Path | None = None,
) -> Tracker:
    """Write the session's first event, then start the senders, which read it. Of several processes the first logs."""
    first = is_first_process()
    path = tracking_folder() / f"{run_id}.jsonl" if first else Path(os.devnull)
    log = RunLog(path, f"{stage}-{secrets.token_hex(4)}")
    tracker = Tracker(log, params.tracking.log_checkpoints, last_step(log.read()))
    orders = orders_for(params.tracking, log, tracking_root(), live) if first else []
    tracker.start(describe(params, stage, facts, run_id, parent), orders)
    return tracker


def orders_for(tracking: TrackingParams, log: RunLog, root: Path, live: Path | None = None) -> list[Orders]:
    """One sender's orders for each tracker that is on; live: folder of a training's curves."""
    orders: list[Orders] = []
    watched, limit = tracking.system_metrics and live is not None, tracking.upload_limit_mb * 1e6
    order = partial(
        Orders, log=str(log.path), session=log.session, patience=SECONDS_LOCAL, niceness=NICENESS if live else 0
    )
    if live:
        live.mkdir(parents=True, exist_ok=True)  # a DVC out must exist even when DVCLive fails
        orders.append(order("dvclive", kinds=[], options={"folder": str(live)}, patience=SECONDS_CURVES))
    if tracking.mlflow != "none":
        place = mlflow_place(tracking, root)
        remote = is_remote(str(place["uri"]))
        options = {**place, "system_metrics": watched}
        kinds, patience = KINDS[level_for(tracking.send, remote)], SECONDS_REMOTE if remote else SECONDS_LOCAL
        largest = limit if remote else math.inf
        orders.append(order("mlflow", kinds=kinds, options=options, patience=patience, largest=largest))
    if tracking.wandb != "none":
        options = {"folder": str(root), "mode": wandb_mode(tracking), "system_metrics": watched}
        kinds = KINDS[level_for(tracking.send, remote=True)]
        orders.append(order("wandb", kinds=kinds, options=options, largest=limit))
    return orders


def mlflow_place(tracking: TrackingParams, root: Path) -> dict[str, str | None]:
    """The tracking `uri`, and on this machine the folder for `artifacts`."""
    uri = mlflow_uri(tracking, root)
    folder = root / "mlartifacts" / re.sub(r"[^\w.-]", "_", tracking.project_name)
    return {"uri": uri, "artifacts": None if is_remote(uri) else folder.as_uri()}


def mlflow_uri(tracking: TrackingParams, root: Path) -> str:
    """The tracking URI that `tracking.mlflow` stands for; DVC deletes the folder that a `--temp` run works in."""
    own = os.environ.get("MLFLOW_TRACKING_URI") if tracking.mlflow == "auto" else tracking.mlflow
    uri = own or "sqlite:///mlflow.db"
    relative = uri.startswith("sqlite:///") and not uri.startswith("sqlite:////")
    return uri.replace("sqlite:///", f"sqlite:///{root}/", 1) if relative else uri


def wandb_mode(tracking: TrackingParams) -> str:
    """offline, online or disabled; the user's own WANDB_MODE wins."""
    return os.environ.get("WANDB_MODE") or tracking.wandb


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
