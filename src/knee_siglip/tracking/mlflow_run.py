"""MLflow: one run by its client, without the global state (active run, tracking URI) of MLflow's fluent interface."""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from knee_siglip.core.files import lock, sha256
from knee_siglip.tracking.backend import Point, later_tags
from knee_siglip.tracking.runlog import Event, last_id

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; with MLflow's defaults one call to a dead server blocks for 246 s
}
METRICS_PER_CALL = 1000  # MLflow's limits for one log_batch
TEXTS_PER_CALL = 100
LONGEST_PARAM = 500  # characters; newer servers take 6000
SECONDS_FOR_LOCK = 60.0  # creating the database takes 7-9 s on two cores


class MlflowRun:
    """`uri`: a tracking URI. `artifacts`: URI of a new experiment's folder for files, None leaves it to the server."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        os.environ.update(ENVIRONMENT)
        for noisy in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.uri = uri
        self.artifacts = artifacts
        self.run_id = ""
        self.known: dict[tuple[str, int], float] = {}
        self.last_time = 0

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Create the run, or resume the one in `earlier` if the server still has it."""
        from mlflow.tracking import MlflowClient

        known_id = last_id(earlier, "mlflow")
        with _creation_lock(self.uri):
            self.client = MlflowClient(tracking_uri=self.uri)
            run = self._find(known_id) if known_id else None
            experiment = "" if run else self._experiment(start["project"])
        if run:
            self._reopen(run, start)
        else:
            self.run_id = self.client.create_run(
                experiment, start_time=_milliseconds(start["time"]), run_name=start["name"], tags=start["tags"]
            ).info.run_id
            self._log_params(start["config"], logged=set())
        return self.run_id

    def metrics(self, points: Sequence[Point]) -> None:
        """One call per 1,000 points. A resumed run gets only what it lacks: MLflow keeps a repeated point twice."""
        from mlflow.entities import Metric

        fresh = [point for point in points if self.known.get((point.key, point.step)) != point.value]
        self.last_time = max([self.last_time, *(_milliseconds(point.time) for point in fresh)])
        metrics = [Metric(point.key, point.value, _milliseconds(point.time), point.step) for point in fresh]
        for part in _parts(metrics, METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=part)

    def summary(self, values: dict[str, float], step: int) -> None:
        """Log final values as the latest metrics: MLflow orders by step, then by time."""
        now = max(_milliseconds(time.time()), self.last_time + 1) / 1000
        self.metrics([Point(key, value, step, now) for key, value in values.items()])

    def artifact(self, path: Path, kind: str, how: str) -> None:
        """Copy the file under the folder `kind`, or tag the run with where it lies and what it holds."""
        if how == "copy":
            self.client.log_artifact(self.run_id, str(path), kind)
            return
        self.client.set_tag(self.run_id, f"{kind}.{path.name}.path", str(path))
        self.client.set_tag(self.run_id, f"{kind}.{path.name}.sha256", sha256(path))

    def close(self, status: str) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, status)

    def _find(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _experiment(self, name: str) -> str:
        """Id of the experiment. Its artifact folder is fixed here: MLflow would freeze the working folder's."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=self.artifacts))

    def _reopen(self, run: Any, start: Event) -> None:
        """Resume the run and read which points it holds."""
        from mlflow.entities import RunTag

        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in later_tags(start).items()])
        self._log_params(start["config"], logged=set(run.data.params))
        for key in run.data.metrics:
            history = self.client.get_metric_history(self.run_id, key)
            self.known |= {(point.key, point.step): point.value for point in history}

    def _log_params(self, config: dict[str, Any], logged: set[str]) -> None:
        """MLflow refuses a second value for a parameter, so what the run has stays."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in config.items() if key not in logged]
        for part in _parts(params, TEXTS_PER_CALL):
            self.client.log_batch(self.run_id, params=part)


def _creation_lock(uri: str) -> AbstractContextManager[None]:
    """Two processes that create one SQLite database at once crash each other; servers handle that."""
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    database = uri.removeprefix("sqlite:///")
    return lock(Path(f"{database}.lock"), f"creating {database}", wait=SECONDS_FOR_LOCK)


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
