"""MLflow: one run by its client, without the global state (active run, tracking URI) of MLflow's fluent interface."""

import getpass
import logging
import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from knee_siglip.core.files import link_or_copy, lock
from knee_siglip.tracking.backend import COMPLETE, INCOMPLETE, Point, checksum_tags, grouped, own_tags
from knee_siglip.tracking.runlog import Event, last_id

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; with MLflow's defaults one call to a dead server blocks for 246 s
}
"""What MLflow is told, where the user has not set it otherwise."""

RUN_TAG = "knee_siglip.run"
"""Our own id of a run, by which it is found again when the server's answer to its creation was lost."""

METRICS_PER_CALL = 1000  # MLflow's limits for one log_batch
TEXTS_PER_CALL = 100
LONGEST_PARAM = 500  # characters; newer servers take 6000
SECONDS_FOR_LOCK = 60.0  # creating the database takes 7-9 s on two cores


class MlflowRun:
    """`uri`: a tracking URI. `artifacts`: URI of a new experiment's folder for files, None leaves it to the server."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for noisy in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.uri = uri
        self.artifacts = artifacts
        self.run_id = ""
        self.reached: dict[str, dict[int, float]] = {}
        """Key to the points that the run holds, by their step."""
        self.unread: set[str] = set()
        """Keys of a resumed run whose points were not asked for yet."""
        self.last_time = 0

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Create the run, or resume the one in `earlier` if the server still has it."""
        from mlflow.tracking import MlflowClient

        with _creation_lock(self.uri):
            self.client = MlflowClient(tracking_uri=self.uri)
            experiment = self._experiment(start["project"])
        run = self._find(start, last_id(earlier, "mlflow"), experiment)
        tags = own_tags(start, earlier, "mlflow") | {COMPLETE: INCOMPLETE}
        if run:
            self._reopen(run, start, tags)
        else:
            tags |= {RUN_TAG: start["run"]} | _own_tags_of_mlflow(start) | self._parent(start, experiment)
            self.run_id = self.client.create_run(
                experiment, start_time=_milliseconds(start["time"]), run_name=start["name"], tags=tags
            ).info.run_id
            self._log_params(start["config"], logged=set())
        return self.run_id

    def metrics(self, points: Sequence[Point]) -> None:
        """One call per 1,000 points. A resumed run gets only what it lacks: MLflow keeps a repeated point twice."""
        fresh = []
        for point in points:
            reached = self._reached(grouped(point.key))
            if point.step not in reached:
                reached[point.step] = point.value
                fresh.append(point)
        self._log(fresh)

    def summary(self, values: dict[str, float], step: int) -> None:
        """Log final values as the latest metrics, where a curve does not end with them: MLflow orders by step, time."""
        now = max(_milliseconds(time.time()), self.last_time + 1) / 1000
        fresh = []
        for key, value in values.items():
            reached = self._reached(grouped(key))
            if not reached or not _same(reached[max(reached)], value):
                reached[max([step, *reached])] = value
                fresh.append(Point(key, value, max(reached), now))
        self._log(fresh)

    def tags(self, values: dict[str, str]) -> None:
        """Set the run's tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def artifact(self, event: Event) -> None:
        """Copy the file (a local model is linked) into its folder, or tag the run with how to get and know it."""
        if event["kind"] == "model":
            self.tags(checksum_tags(event))
        if event["how"] != "copy":
            return
        path = Path(event["path"])
        target = self._local_folder() if event["kind"] == "model" else None
        if target:
            (target / event["folder"]).mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target / event["folder"] / path.name)
        else:
            self.client.log_artifact(self.run_id, str(path), event["folder"])

    def close(self, status: str, complete: bool) -> None:
        """End the run."""
        if complete:
            self.client.set_tag(self.run_id, COMPLETE, "yes")
        self.client.set_terminated(self.run_id, status)

    def _find(self, start: Event, run_id: str | None, experiment: str) -> Any:
        """The run as the server has it: by its id, else by our own."""
        from mlflow.exceptions import MlflowException

        if run_id:
            try:
                return self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self.client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{start['run']}'", max_results=1)
        return found[0] if found else None

    def _parent(self, start: Event, experiment: str) -> dict[str, str]:
        """Tag of the run that trained the model: known from its log, else another machine's on the same server."""
        parent, model = start.get("parent_id"), start["tags"].get("model_sha256")
        if not parent and model:
            query = f"tags.model_sha256 = '{model}' and tags.stage = 'train'"
            found = self.client.search_runs([experiment], query, max_results=1)
            parent = found[0].info.run_id if found else None
        return {"mlflow.parentRunId": parent} if parent else {}

    def _experiment(self, name: str) -> str:
        """Id of the experiment. Its artifact folder is fixed here: MLflow would freeze the working folder's."""
        if own := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return own
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=self.artifacts))

    def _reopen(self, run: Any, start: Event, tags: dict[str, str]) -> None:
        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")
        self.tags(tags)
        self._log_params(start["config"], logged=set(run.data.params))
        self.unread = set(run.data.metrics)

    def _reached(self, key: str) -> dict[int, float]:
        """Points of a curve by their step."""
        if key in self.unread:
            self.unread.remove(key)
            history = self.client.get_metric_history(self.run_id, key)
            history.sort(key=lambda point: (point.step, point.timestamp))
            self.reached[key] = {point.step: point.value for point in history}
            self.last_time = max([self.last_time, *(point.timestamp for point in history)])
        return self.reached.setdefault(key, {})

    def _log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        self.last_time = max([self.last_time, *(_milliseconds(point.time) for point in points)])
        metrics = [Metric(grouped(p.key), _storable(p.value), _milliseconds(p.time), p.step) for p in points]
        for part in _parts(metrics, METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=part)

    def _log_params(self, config: dict[str, Any], logged: set[str]) -> None:
        """MLflow refuses a second value for a parameter, so what the run has stays."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in config.items() if key not in logged]
        for part in _parts(params, TEXTS_PER_CALL):
            self.client.log_batch(self.run_id, params=part)

    def _local_folder(self) -> Path | None:
        """Folder of the run's artifacts where that is on this machine."""
        address = urlsplit(self.client.get_run(self.run_id).info.artifact_uri)
        return Path(unquote(address.path)) if address.scheme in ("", "file") else None


def _own_tags_of_mlflow(start: Event) -> dict[str, str]:
    """What MLflow's pages show as source, version and user."""
    tags = {"mlflow.source.name": start["source"], "mlflow.source.type": "LOCAL"}
    if revision := start["tags"].get("git_revision"):
        tags["mlflow.source.git.commit"] = revision
    with suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _storable(value: float) -> float:
    """MLflow stores infinity as 1.797e308, which reads like a measurement; it keeps nan."""
    return value if math.isfinite(value) else math.nan


def _same(one: float, other: float) -> bool:
    return _storable(one) == _storable(other) or (not math.isfinite(one) and not math.isfinite(other))


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
