"""Weights & Biases: offline by default; `wandb sync <root>/wandb/offline-run-*` sends such a run to a server.

Artifacts have one name in all runs, so that W&B gives them versions: the data, which the training uses, the
checkpoints, which it makes, and the files of each evaluation, which uses a checkpoint. W&B takes uses from connected
runs alone; the outputs' metadata says the same.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
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
        for event in earlier:
            own = (event["event"], event["session"], event.get("backend")) == ("opened", start["session"], "wandb")
            if own and Path(event["id"]).name.startswith("offline-run-"):  # it was cut off, and is written anew
                shutil.rmtree(event["id"], ignore_errors=True)
        self.run = self._init(start, first, {**start["config"], **tags})
        self.run.summary[COMPLETE] = INCOMPLETE
        self.stage = start["stage"]
        self.outputs: Any = None
        self._log_inputs(start)
        return str(self.run.id) if self.mode == "disabled" else str(Path(self.run.dir).parent)

    def metrics(self, points: Sequence[Point]) -> None:
        """Log points under their own steps, which must not fall; not those that an interrupted session has logged."""
        fresh = [point for point in points if (point.key, point.step) not in self.known]
        for step, values in by_step(fresh):
            self.run.log({grouped(key): value for key, value in values.items()}, step=step)

    def summary(self, points: Sequence[Point]) -> None:
        """Final values replace the curves' last ones in the run's summary; the curves' last row must be out before."""
        self.run.log({}, commit=True)
        self.run.summary.update({grouped(point.key): point.value for point in points})

    def tags(self, values: dict[str, str]) -> None:
        """Add to the run's config."""
        self.run.config.update(values, allow_val_change=True)

    def artifact(self, event: Event) -> None:
        """A checkpoint is an artifact, with its file or with what it takes to get and know it; so are all other files.

        Pictures and the table of cases are shown on the run's page too.
        """
        path = Path(event["path"])
        if event["kind"] == "model":
            known = checksum_tags(event)
            model = self._new_artifact(path.stem, "model", known)
            if event["how"] == "copy":
                model.add_file(str(path), policy="immutable")
            self.run.log_artifact(model, aliases=["latest", _alias(known["sha256"])])
        elif event["how"] == "copy":
            self.outputs = self.outputs or self._new_artifact(self.stage, "evaluation", {})
            self.outputs.add_file(str(path), name=f"{event['folder']}/{path.name}", policy="immutable")
            if shown := _shown(path):
                self.run.summary[f"{event['folder']}/{path.stem}"] = shown  # of no step, as an evaluation is

    def close(self, status: str, complete: bool) -> None:
        """Write everything out and stop W&B's service process.

        Raises:
            Postponed: there was no connection, so that the server lacks this run.
        """
        import wandb

        if self.outputs:
            self.run.log_artifact(self.outputs)
        if complete:
            self.run.summary[COMPLETE] = "yes"
        self.run.finish(exit_code=EXIT_CODES[status])
        wandb.teardown()
        if not self.connected:
            raise Postponed("no connection to W&B; the run was written offline")

    def _log_inputs(self, start: Event) -> None:
        """The data of a training, the checkpoint of an evaluation."""
        import wandb

        data, model = start["tags"].get("data_hash"), start["tags"].get("model_sha256")
        self.inputs = {name: value for name, value in (("data_hash", data), ("model_sha256", model)) if value}
        if self.mode != "online" or not self.connected:
            return
        if model:
            with suppress(wandb.errors.Error, ValueError):  # it was trained elsewhere
                self.run.use_artifact(f"best_model:{_alias(model)}")
        elif data:
            counts = {key: value for key, value in start["config"].items() if key.startswith("dataset.")}
            dataset = self._new_artifact("data", "dataset", counts)
            dataset.add_reference(f"sha256:{data}", name="content", checksum=False)
            self.run.use_artifact(dataset)

    def _new_artifact(self, name: str, kind: str, known: dict[str, Any]) -> Any:
        import wandb

        return wandb.Artifact(name, type=kind, metadata={**self.inputs, **known})

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
            wandb.teardown()  # its service process holds the run's id
            run = wandb.init(mode="offline", **arguments)
        return run


def _alias(sha256: str) -> str:
    return f"sha256-{sha256[:16]}"


def _shown(path: Path) -> Any:
    """A picture or the table of cases as W&B shows it."""
    import wandb

    if path.suffix in (".png", ".jpg"):
        return wandb.Image(str(path))
    if path.name == "cases.csv":
        import pandas as pd

        return wandb.Table(dataframe=pd.read_csv(path))
    return None
