"""Six queued experiments with two workers: do metrics.json, MLflow and W&B hold the same of each?

    python benchmarks/experiment_queue.py [--folder FOLDER]        (6 minutes on two idle cores)

In a clone of the committed project, on a miniature of the sample, the whole grid `-S seed=1,2,3 -S
train.learning_rate=0.001,0.002` runs through `dvc queue start --jobs 2`. Then every value of each experiment's
reports/{train,evaluation}/metrics.json, and its headline file, is looked up in its MLflow run and in its W&B offline
run, rounded as the files are. Targets: no experiment fails, none has two runs or none, no value is missing or differs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from claims import Claim, conclude
from dvc.api import DVCFileSystem
from mlflow.tracking import MlflowClient
from pipeline_run import Clone
from ruamel.yaml import YAML

from knee_siglip.core.metrics_file import rounded
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.report.headline import headline_metrics

MINIATURE = {
    "image_size": 112,
    "sample.patients": 120,
    "train.batch_size": 16,
    "train.steps": 40,
    "evaluate.robustness": False,
    "evaluate.grounding.images": 8,
}
GRID = ("-S", "seed=1,2,3", "-S", "train.learning_rate=0.001,0.002")
EXPERIMENTS = 6
FACTS = ("dataset.", "parameters.")
"""What the trackers show as params."""

Values = Mapping[str, float]


def prepare(folder: Path) -> Clone:
    """A clone with a committed first run of the miniature."""
    clone = Clone(folder)
    yaml, path = YAML(), clone.folder / "params.yaml"
    params = yaml.load(path.read_text())
    for name, value in MINIATURE.items():
        *sections, key = name.split(".")
        section = params
        for each in sections:
            section = section[each]
        section[key] = value
    yaml.dump(params, path)
    clone.run("git", "commit", "--quiet", "--all", "--message", "miniature")
    clone.run("dvc", "repro")
    clone.run("git", "commit", "--quiet", "--all", "--message", "first run")
    return clone


def run_queue(clone: Clone) -> float:
    """Run the grid to its end; seconds."""
    started = time.perf_counter()
    clone.run("dvc", "exp", "run", "--queue", *GRID)
    clone.run("dvc", "queue", "start", "--jobs", "2")
    while {"Queued", "Running"} & set(queue_states(clone).values()):
        time.sleep(5)
    return time.perf_counter() - started


def queue_states(clone: Clone) -> dict[str, str]:
    """Name to state, from the rows `task name created state` of `dvc queue status`."""
    rows = [line.split() for line in clone.run("dvc", "queue", "status")[1].splitlines()[1:]]
    return {row[1]: row[-1] for row in rows if row and row[-1] in ("Queued", "Running", "Success", "Failed")}


def written(clone: Clone, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """What the files of an experiment say: all values, and the headline."""
    files = DVCFileSystem(str(clone.folder), rev=name)
    train, evaluation, headline = [
        json.loads(files.read_bytes(f"reports/{part}metrics.json")) for part in ("train/", "evaluation/", "")
    ]
    values = flatten(train) | flatten(evaluation)
    return {name: value for name, value in values.items() if not name.startswith(FACTS)}, headline


def mlflow_runs(clone: Clone, name: str) -> list[Values]:
    """Metrics of every MLflow run of an experiment."""
    client = MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("knee-siglip")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.DVC_EXP_NAME = '{name}'")
    return [run.data.metrics for run in runs]


def wandb_runs(clone: Clone, name: str) -> list[Values]:
    """Summary of every W&B run of an experiment: its stages are offline parts of one; the first is named."""
    summaries: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for folder in sorted((clone.folder / "wandb").glob("offline-run-*")):
        lines = clone.run("wandb", "leet", "inspect", "--json", str(folder))[1].splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        (start,) = [record["run"] for record in records if record.get("type") == "run"]
        names.setdefault(start["run_id"], start.get("display_name", ""))
        summary = summaries.setdefault(start["run_id"], {})
        for record in records:
            summary |= record["summary"]["update"] if record.get("type") == "summary" else {}
    return [summary for run, summary in summaries.items() if names[run] == name]


def differing(values: Values, headline: Values, tracked: Values) -> list[str]:
    """Names of values that a tracker lacks or has otherwise, to the files' digits."""
    there = rounded({name: tracked.get(name.replace(".", "/")) for name in values})
    wrong = [name for name, value in values.items() if there[name] != value]
    nested = nest({name: value for name, value in there.items() if value is not None})
    evaluation = {"test": nested.pop("test", {})}
    again = rounded(headline_metrics(evaluation, nested, {}, task_of(Params())))
    return wrong + [f"headline {name}" for name in headline.keys() & again.keys() if headline[name] != again[name]]


def judge(clone: Clone) -> tuple[list[Claim], dict[str, Any]]:
    """The claims, and what of each experiment differs."""
    trackers: dict[str, Callable[[Clone, str], list[Values]]] = {"MLflow": mlflow_runs, "W&B": wandb_runs}
    states = queue_states(clone)
    done = [name for name, state in states.items() if state == "Success"]
    claims = [Claim("experiments done", len(done), ">=", EXPERIMENTS)]
    facts: dict[str, Any] = {"experiments": states}
    expected = {name: written(clone, name) for name in done}
    for tracker, runs_of in trackers.items():
        runs = {name: runs_of(clone, name) for name in done}
        wrong = {name: differing(*expected[name], found[0]) for name, found in runs.items() if found}
        facts[f"{tracker}: differing"] = {name: names for name, names in wrong.items() if names}
        claims += [
            Claim(
                f"{tracker}: experiments without one run of their own", sum(len(f) != 1 for f in runs.values()), "<=", 0
            ),
            Claim(f"{tracker}: values missing or differing", sum(map(len, wrong.values())), "<=", 0),
        ]
    facts["values compared"] = sum(len(values) + len(headline) for values, headline in expected.values())
    return claims, facts


def main() -> None:
    """Run, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Keep the clone here. None: a temporary folder.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = prepare(args.folder or Path(temporary))
        seconds = round(run_queue(clone))
        claims, facts = judge(clone)
        conclude(claims, {"seconds in the queue": seconds} | facts, args.output, "dvc", "mlflow", "wandb")


if __name__ == "__main__":
    main()
