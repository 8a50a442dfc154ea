"""Weights & Biases: offline by default; `wandb sync <root>/wandb/offline-run-*` sends such a run to a server."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knee_siglip.tracking.backend import (
    COMPLETE,
    INCOMPLETE,
    Point,
    Postponed,
    by_step,
    checksum_tags,
    grouped,
    is_first_session,
    own_tags,
    points_of,
)
from knee_siglip.tracking.runlog import Event

SECONDS_TO_START = 10.0  # of waiting for a server; W&B's own 90 s
SECONDS_TO_FINISH = 20.0  # of sending what is left; W&B's own limit is none
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}

SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "init_timeout": SECONDS_TO_START,
    "login_timeout": SECONDS_TO_START,
    "finish_timeout": SECONDS_TO_FINISH,
    "finish_timeout_raises": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""Where the user has not set WANDB_<NAME> otherwise."""

NO_SYSTEM_METRICS = {"x_disable_stats": True, "x_disable_machine_info": True}


class WandbRun:
    """`folder`: the root in which W&B makes its `wandb/`. `mode`: offline, online or disabled.

    Without a connection an online run is written as an offline one; `sync` sends it later.
    """

    def __init__(self, folder: str, mode: str, system_metrics: bool = False) -> None:
        self.folder = folder
        self.settings = SETTINGS | ({} if system_metrics else NO_SYSTEM_METRICS)
        self.mode = mode
        self.connected = mode != "online"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B would send its own crashes to its makers
        for kind in ("DATA", "CACHE", "ARTIFACT"):
            os.environ.setdefault(f"WANDB_{kind}_DIR", str(Path(folder, "wandb", kind.lower())))
        if mode == "offline":
            os.environ.setdefault("WANDB_CONFIG_DIR", str(Path(folder, "wandb", "config")))

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Start the run under our own run id; W&B joins runs of one id, offline ones when they are synced."""
        held = {event["session"] for event in earlier if event["event"] == "delivered" and event["backend"] == "wandb"}
        logged = points_of([event for event in earlier if event["session"] in held - {start["session"]}])
        self.known = {(point.key, point.step) for point in logged}
        first = is_first_session(start, earlier, "wandb")
        tags = own_tags(start, earlier, "wandb")
        for attempt in _attempts(earlier, start):
            shutil.rmtree(attempt, ignore_errors=True)  # an offline part that was cut off, and is written anew
        self.run = self._init(start, first, {**start["config"], **tags})
        self.run.summary[COMPLETE] = INCOMPLETE
        return str(self.run.id) if self.mode == "disabled" else str(Path(self.run.dir).parent)

    def metrics(self, points: Sequence[Point]) -> None:
        """Log points under their own steps, which must not fall; not those that an interrupted session has logged."""
        fresh = [point for point in points if (point.key, point.step) not in self.known]
        for step, values in by_step(fresh):
            self.run.log({grouped(key): value for key, value in values.items()}, step=step)

    def summary(self, values: dict[str, float], step: int) -> None:  # noqa: ARG002
        """Final values replace the curves' last ones in the run's summary; the curves' last row must be out before."""
        self.run.log({}, commit=True)
        self.run.summary.update({grouped(key): value for key, value in values.items()})

    def tags(self, values: dict[str, str]) -> None:
        """Add to the run's config."""
        self.run.config.update(values, allow_val_change=True)

    def artifact(self, event: Event) -> None:
        """A W&B artifact that holds the file; of a model that stays here, its checksums in the run's config."""
        import wandb

        if event["kind"] == "model":
            name = f"{event['folder']}/{Path(event['path']).name}"
            self.tags({f"{name}.{key}": value for key, value in checksum_tags(event).items()})
        if event["how"] == "copy":
            path = Path(event["path"])
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"{event['folder']}-{path.stem}"), type=event["kind"])
            artifact.add_file(str(path), policy="immutable")
            self.run.log_artifact(artifact)

    def close(self, status: str, complete: bool) -> None:
        """Write everything out and stop W&B's service process.

        Raises:
            Postponed: there was no connection, so that the server lacks this run.
        """
        import wandb

        if complete:
            self.run.summary[COMPLETE] = "yes"
        self.run.finish(exit_code=EXIT_CODES[status])
        wandb.teardown()
        if not self.connected:
            raise Postponed("no connection to W&B; the run was written offline")

    def _init(self, start: Event, first: bool, config: dict[str, Any]) -> Any:
        import wandb

        arguments = {
            "project": None if "WANDB_PROJECT" in os.environ else start["project"],
            "name": start["name"] if first and "WANDB_NAME" not in os.environ else None,
            "group": start["parent"] if first and "WANDB_RUN_GROUP" not in os.environ else None,
            "job_type": start["stage"] if first and "WANDB_JOB_TYPE" not in os.environ else None,
            "dir": None if "WANDB_DIR" in os.environ else self.folder,
            "settings": wandb.Settings(
                **{key: value for key, value in self.settings.items() if f"WANDB_{key.upper()}" not in os.environ}
            ),
            "id": start["run"],
            "resume": "allow",
            "config": config,
        }
        try:
            run = wandb.init(mode=self.mode, **arguments)  # type: ignore[arg-type]
            self.connected = True
        except wandb.errors.Error:
            if self.mode != "online":
                raise
            run = wandb.init(mode="offline", **arguments)
        return run


def _attempts(earlier: list[Event], start: Event) -> list[str]:
    """Folders of earlier attempts at this session that no server has seen."""
    ids = [
        event["id"]
        for event in earlier
        if (event["event"], event["session"], event.get("backend")) == ("opened", start["session"], "wandb")
    ]
    return [folder for folder in ids if Path(folder).name.startswith("offline-run-")]
