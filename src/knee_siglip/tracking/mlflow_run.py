"""MLflow: one run by its client, without the global state (active run, tracking URI) of MLflow's fluent interface.

A checkpoint is a LoggedModel: made by the run that trained it, with the figures of its own step there and of every
evaluation of it, so that `search_logged_models` ranks checkpoints. The data is a dataset, an input of the run.
"""

import getpass
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from knee_siglip.tracking.backend import COMPLETE, INCOMPLETE, Point, checksum_tags, grouped, own_tags
from knee_siglip.tracking.mlflow_models import LoggedModels, connect, import_mlflow
from knee_siglip.tracking.privacy import NOT_SENT
from knee_siglip.tracking.runlog import Event, last_id

RUN_TAG = "knee_siglip.run"
"""Our own id of a run, by which it is found again when the server's answer to its creation was lost."""

METRICS_PER_CALL = 1000  # MLflow's limits for one log_batch
TEXTS_PER_CALL = 100
RANKED_PER_CALL = 100  # of more metrics of a model, MLflow refuses those that it has (3.17, _log_model_metrics)
LONGEST_PARAM = 500  # characters; newer servers take 6000
LONGEST_DIGEST = 36

STEP_METRICS = {"best_model": "best_step", "final_model": "steps_done"}
"""The metric that says at which step a checkpoint of the training was saved."""


class MlflowRun:
    """`uri`: a tracking URI. `artifacts`: URI of a new experiment's folder for files, None leaves it to the server.

    system_metrics: log the machine's load while the run goes on.
    """

    def __init__(self, uri: str, artifacts: str | None, system_metrics: bool = False) -> None:
        import_mlflow()  # here, outside the time limit of a call
        self.uri = uri
        self.artifacts = artifacts
        self.system_metrics = system_metrics
        self.monitor: Any = None
        self.run_id = ""
        self.ours: tuple[list[str], str] = [], ""
        """Experiments and query that find the run on the server by our own id."""
        self.dataset: Any = None
        self.evaluated: str | None = None
        """Id of the LoggedModel that this session evaluates."""
        self.reached: dict[str, dict[int, Any]] = {}
        """Key to the points (MLflow's `Metric`) that the run holds, by their step."""
        self.unread: set[str] = set()
        """Keys of a resumed run whose points were not asked for yet."""

    def open(self, start: Event, earlier: list[Event]) -> str:
        """Create the run, or resume the one in `earlier` if the server still has it."""
        self.client, experiment = connect(self.uri, start["project"], self.artifacts)
        self.ours = [experiment], f"tags.`{RUN_TAG}` = '{start['run']}'"
        run = self._held(last_id(earlier, "mlflow")) or self._first(*self.ours)
        experiment = run.info.experiment_id if run else experiment  # its own, which may have another name by now
        self.models = LoggedModels(self.client, experiment)
        tags = own_tags(start, earlier, "mlflow") | {COMPLETE: INCOMPLETE}
        if run:
            self._reopen(run, start, tags)
        else:
            tags |= {RUN_TAG: start["run"]} | _own_tags_of_mlflow(start) | self._parent(start, experiment)
            self.run_id = self.client.create_run(
                experiment, start_time=_milliseconds(start["time"]), run_name=start["name"], tags=tags
            ).info.run_id
            self._log_params(start["config"], logged=set())
        self._log_inputs(start, made=run is None)
        if self.system_metrics and start["goes_on"]:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=run is not None, tracking_uri=self.uri)
            self.monitor.start()
        return self.run_id

    def metrics(self, points: Sequence[Point]) -> None:
        """One call per 1,000 points. A resumed run gets only what it lacks: MLflow keeps a repeated point twice."""
        fresh = []
        for point in points:
            reached = self._reached(grouped(point.key))
            if point.step not in reached:
                reached[point.step] = _metric(point)
                fresh.append(reached[point.step])
        self._log(fresh)

    def summary(self, points: Sequence[Point]) -> None:
        """Log final values as the latest metrics, where a curve does not end with them: MLflow orders by step, time.

        A point keeps the time of its event: MLflow takes it once, also when an attempt given up arrives after all.
        """
        fresh, last = [], []
        for point in points:
            reached = self._reached(grouped(point.key))
            if not reached or not _same(reached[max(reached)].value, point.value):
                metric = _metric(point._replace(step=max([point.step, *reached])))
                reached[metric.step] = metric
                fresh.append(metric)
            last.append(reached[max(reached)])
        self._log(fresh)
        if self.evaluated:
            self._rank(self.evaluated, last)

    def tags(self, values: dict[str, str]) -> None:
        """Set the run's tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def artifact(self, event: Event) -> None:
        """Copy the file into its folder; a checkpoint becomes a LoggedModel."""
        if event["kind"] == "model":
            path = Path(event["path"])
            step = self._step_of(path.stem)
            model = self.models.log(path, checksum_tags(event), event["how"] == "copy", self.run_id, step)
            self._rank(model.model_id, [reached[step] for reached in self.reached.values() if step in reached])
        elif event["how"] == "copy":
            self.client.log_artifact(self.run_id, event["path"], event["folder"])

    def close(self, status: str, complete: bool) -> None:
        """End the run."""
        if self.monitor:
            self.monitor.finish()
        if complete:
            for run in self.client.search_runs(*self.ours):
                if run.info.run_id != self.run_id:  # a slow server made it after we had given up its creation
                    self.client.delete_run(run.info.run_id)
            self.client.set_tag(self.run_id, COMPLETE, "yes")
        self.client.set_terminated(self.run_id, status)

    def _held(self, run_id: str | None) -> Any:
        """The run of this id; None where it was deleted, or is another server's."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run and run.info.lifecycle_stage == "active" else None

    def _first(self, experiments: list[str], query: str) -> Any:
        found = self.client.search_runs(experiments, query, max_results=1)
        return found[0] if found else None

    def _parent(self, start: Event, experiment: str) -> dict[str, str]:
        """Tag of the run that trained the model: known from its log, else another machine's on the same server."""
        parent, model = self._held(start.get("parent_id")), start["tags"].get("model_sha256")
        if not parent and model:
            parent = self._first([experiment], f"tags.model_sha256 = '{model}' and tags.stage = 'train'")
        return {"mlflow.parentRunId": parent.info.run_id} if parent else {}

    def _reopen(self, run: Any, start: Event, tags: dict[str, str]) -> None:
        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")
        self.tags(tags)
        self._log_params(start["config"], logged=set(run.data.params))
        self.unread = set(run.data.metrics)

    def _reached(self, key: str) -> dict[int, Any]:
        """Points of a curve by their step."""
        if key in self.unread:
            self.unread.remove(key)
            history = self.client.get_metric_history(self.run_id, key)
            history.sort(key=lambda point: (point.step, point.timestamp))
            self.reached[key] = {point.step: point for point in history}
        return self.reached.setdefault(key, {})

    def _log(self, metrics: Sequence[Any], size: int = METRICS_PER_CALL) -> None:
        for part in _parts(metrics, size):
            self.client.log_batch(self.run_id, metrics=part)

    def _log_inputs(self, start: Event, made: bool) -> None:
        """The data, by the facts of the session, and the model that this session evaluates.

        made: by this session, which so evaluates a model of another run.
        """
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        if model := start["tags"].get("model_sha256"):
            evaluated = self.models.find(model, run_id=self.run_id) or self.models.find(model)
            self.evaluated = evaluated.model_id if evaluated else None
        if self.evaluated and made:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(self.evaluated)])
        self.dataset = _dataset(start)
        if self.dataset:
            context = "training" if start["stage"] == "train" else "evaluation"
            tags = [InputTag("mlflow.data.context", context)]
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(self.dataset, tags)])

    def _step_of(self, name: str) -> int:
        """The step at which training saved the checkpoint of that name, else its last one."""
        said = self._reached(grouped(STEP_METRICS.get(name, "steps_done")))
        last = max((step for reached in self.reached.values() for step in reached), default=0)
        return int(said[max(said)].value) if said else last

    def _rank(self, model_id: str, metrics: Sequence[Any]) -> None:
        """Give a LoggedModel points that its run holds already: MLflow keeps a point of one time once."""
        from mlflow.entities import Metric

        name, digest = (self.dataset.name, self.dataset.digest) if self.dataset else (None, None)
        ranked = [Metric(m.key, m.value, m.timestamp, m.step, model_id, name, digest, self.run_id) for m in metrics]
        self._log(ranked, RANKED_PER_CALL)

    def _log_params(self, config: dict[str, Any], logged: set[str]) -> None:
        """MLflow refuses a second value for a parameter, so what the run has stays."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in config.items() if key not in logged]
        for part in _parts(params, TEXTS_PER_CALL):
            self.client.log_batch(self.run_id, params=part)


def _own_tags_of_mlflow(start: Event) -> dict[str, str]:
    """What MLflow's pages show as source, version and user."""
    tags = {"mlflow.source.name": start["source"], "mlflow.source.type": "LOCAL"}
    if revision := start["tags"].get("git_revision"):
        tags["mlflow.source.git.commit"] = revision
        tags["mlflow.source.git.dirty"] = start["tags"].get("git_dirty", "false")
    with suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _metric(point: Point) -> Any:
    from mlflow.entities import Metric

    return Metric(grouped(point.key), _storable(point.value), _milliseconds(point.time), point.step)


def _dataset(start: Event) -> Any:
    """The data of a session: its CSV, where that may be told, the hash of its content, and rows by split."""
    from mlflow.entities import Dataset

    digest = start["tags"].get("data_hash")
    if not digest:
        return None
    csv = start["config"].get("data.csv", NOT_SENT)
    known = csv != NOT_SENT
    counts = {key: value for key, value in start["config"].items() if key.startswith("dataset.")}
    return Dataset(
        name=start["project"],
        digest=digest[:LONGEST_DIGEST],
        source_type="local" if known else "code",
        source=json.dumps({"uri": csv} if known else {"tags": {}}),
        profile=json.dumps(counts) if counts else None,
    )


def _storable(value: float) -> float:
    """MLflow stores infinity as 1.797e308, which reads like a measurement; it keeps nan."""
    return value if math.isfinite(value) else math.nan


def _same(one: float, other: float) -> bool:
    return _storable(one) == _storable(other) or (not math.isfinite(one) and not math.isfinite(other))


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
