"""Weights & Biases: offline by default; `wandb sync <root>/wandb/offline-run-*` sends such a run to a server."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from knee_siglip.tracking.backend import Point, by_step, later_tags
from knee_siglip.tracking.runlog import Event, last_id

SECONDS_TO_START = 10.0  # of waiting for a server; W&B's own 90 s
SECONDS_TO_FINISH = 25.0  # of sending what is left; W&B's own limit is none
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}


class WandbRun:
    """`folder`: the root in which W&B makes its `wandb/`. `mode`: offline or online."""

    def __init__(self, folder: str, mode: str) -> None:
        self.folder = folder
        self.mode = mode
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # W&B would send its own crashes to its makers
        for kind in ("DATA", "CACHE", "ARTIFACT"):
            os.environ.setdefault(f"WANDB_{kind}_DIR", str(Path(folder, "wandb", kind.lower())))
        if mode == "offline":
            os.environ.setdefault("WANDB_CONFIG_DIR", str(Path(folder, "wandb", "config")))

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Start the run under our own run id; W&B joins runs of one id, offline ones when they are synced."""
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            init_timeout=SECONDS_TO_START,
            login_timeout=SECONDS_TO_START,
            finish_timeout=SECONDS_TO_FINISH,
            finish_timeout_raises=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        later = last_id(earlier, "wandb") is not None
        self.run = wandb.init(
            project=start["project"],
            name=None if later else start["name"],
            id=start["run"],
            job_type=None if later else start["stage"],
            mode=self.mode,  # type: ignore[arg-type]
            dir=self.folder,
            resume="allow",
            config={**start["config"], **(later_tags(start) if later else start["tags"])},
            settings=settings,
        )
        return str(self.run.id)

    def metrics(self, points: Sequence[Point]) -> None:
        """Log points under their own steps, which must not fall."""
        for step, values in by_step(points):
            self.run.log(values, step=step)

    def summary(self, values: dict[str, float], step: int) -> None:  # noqa: ARG002
        """Final values replace the curves' last ones in the run's summary; the curves' last row must be out before."""
        self.run.log({}, commit=True)
        self.run.summary.update(values)

    def artifact(self, path: Path, kind: str, how: str) -> None:
        """A W&B artifact that holds the file (copied to W&B's staging folder), or its place and checksum."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"{kind}-{path.stem}-{self.run.id}"), type=kind)
        if how == "copy":
            artifact.add_file(str(path))
        else:
            artifact.add_reference(path.as_uri())
        self.run.log_artifact(artifact)

    def close(self, status: str) -> None:
        """Write everything out and stop W&B's service process."""
        import wandb

        self.run.finish(exit_code=EXIT_CODES[status])
        wandb.teardown()
