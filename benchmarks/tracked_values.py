"""What MLflow and W&B offline hold of a run, read as their own users read it, and how it differs from metrics.json.

Shared by `experiment_queue.py` and the tests; not a benchmark of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from mlflow.tracking import MlflowClient

from knee_siglip.core.metrics_file import rounded
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.report.headline import headline_metrics

FACTS = ("dataset.", "parameters.")
"""What the trackers show as params."""

Values = Mapping[str, float]


def written(project: Path, stages: tuple[str, ...] = ("train", "evaluation"), rev: str | None = None) -> Values:
    """All values of these stages' metrics.json, in the workspace or at a revision."""
    files = DVCFileSystem(str(project), rev=rev)
    values: dict[str, float] = {}
    for stage in stages:
        values |= flatten(json.loads(files.read_bytes(f"reports/{stage}/metrics.json")))
    return {name: value for name, value in values.items() if not name.startswith(FACTS)}


def headline(project: Path, rev: str | None = None) -> Values:
    """The headline file, in the workspace or at a revision."""
    content: Values = json.loads(DVCFileSystem(str(project), rev=rev).read_bytes("reports/metrics.json"))
    return content


def differing(values: Values, tracked: Values) -> list[str]:
    """Names of values that a tracker lacks or has otherwise, to the files' digits."""
    there = rounded({name: tracked.get(name.replace(".", "/")) for name in values})
    return [name for name, value in values.items() if there.get(name) != value]


def differing_headline(expected: Values, tracked: Values) -> list[str]:
    """Names of headline values that come out otherwise from what a tracker holds, rounded as the files are."""
    numbers = {name.replace("/", "."): value for name, value in tracked.items() if not isinstance(value, dict)}
    values = nest(rounded(numbers))
    again = rounded(headline_metrics({"test": values.get("test", {})}, values, {}, task_of(Params())))
    return [f"headline {name}" for name in expected.keys() & again.keys() if expected[name] != again[name]]


def mlflow_client(project: Path) -> MlflowClient:
    """Of the local database."""
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def mlflow_runs(project: Path, **tags: str) -> list[Any]:
    """MLflow's runs with these tags in the local database."""
    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("knee-siglip")
    assert experiment is not None
    wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment.experiment_id], wanted))


def mlflow_curve(project: Path, run: Any, key: str) -> list[tuple[int, float]]:
    """Points of a curve as (step, value), by step."""
    history = mlflow_client(project).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


class WandbRun:
    """A W&B run, whose stages are offline folders with one id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.summary: dict[str, float] = {}
        self.history: list[dict[str, float]] = []


def wandb_runs(project: Path) -> dict[str, WandbRun]:
    """W&B's offline runs by their ids; the first of a run's folders names it."""
    runs: dict[str, WandbRun] = {}
    for folder in sorted((project / "wandb").glob("offline-run-*")):
        records = wandb_records(folder)
        (start,) = [record["run"] for record in records if record["type"] == "run"]
        run = runs.setdefault(start["run_id"], WandbRun(start.get("display_name", "")))
        for record in records:
            if record["type"] == "summary":
                run.summary |= record["summary"]["update"]
            elif record["type"] == "history":
                run.history.append(record["history"]["item"])
    return runs


def wandb_records(folder: Path) -> list[dict[str, Any]]:
    """All records of an offline folder, as W&B's own reader gives them."""
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    if content not in _RECORDS:
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        _RECORDS[content] = [json.loads(line) for line in lines if line.startswith("{")]
    return _RECORDS[content]


_RECORDS: dict[bytes, list[dict[str, Any]]] = {}
"""By the bytes of the file, which W&B's reader takes most of a second for."""
