"""Six queued experiments with two workers: do metrics.json, MLflow and W&B hold the same of each?

    python benchmarks/experiment_queue.py [--folder FOLDER]        (6 minutes on two idle cores)

In a clone of the committed project, on a miniature of the sample, the whole grid `-S seed=1,2,3 -S
train.learning_rate=0.001,0.002` runs through `dvc queue start --jobs 2`. Then every value of each experiment's
reports/{train,evaluation}/metrics.json, and its headline file, is looked up in its MLflow run and in its W&B offline
run, rounded as the files are. Targets: no experiment fails, two train at one time, none has two runs or none, no value
is missing or differs.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from claims import Claim, conclude
from dvc_queue import queue_states, run_queue
from pipeline_run import Clone
from ruamel.yaml import YAML
from tracked_values import Values, differing, differing_headline, headline, mlflow_runs, wandb_runs, written

from knee_siglip.tracking.runlog import RunLog, session_starts

MINIATURE = {
    "image_size": 112,
    "sample.patients": 120,
    "train.batch_size": 16,
    "train.steps": 40,
    "evaluate.robustness": False,
    "evaluate.grounding.images": 8,
}
GRID = ("-S", "seed=1,2,3", "-S", "train.learning_rate=0.001,0.002")
EXPERIMENTS, JOBS = 6, 2


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


def run_grid(clone: Clone) -> dict[str, Any]:
    """Run the grid to its end; what was seen of the queue."""
    started = time.perf_counter()
    clone.run("dvc", "exp", "run", "--queue", *GRID)
    starts = run_queue(clone.folder, lambda: clone.run("dvc", "queue", "start", "--jobs", str(JOBS)))
    return {"seconds in the queue": round(time.perf_counter() - started), "times the workers were started": starts}


def training_times(clone: Clone) -> dict[str, tuple[float, float]]:
    """From when to when each experiment trained, in seconds since 1970, by the logs of its runs."""
    times = {}
    for log in (clone.folder / ".store/tracking").glob("*.jsonl"):
        events = RunLog(log, "").read()
        ends = {event["session"]: event["time"] for event in events if event["event"] == "end"}
        for session, start in session_starts(events).items():
            if start["stage"] == "train" and (name := start["tags"].get("DVC_EXP_NAME")):
                times[name] = (start["time"], ends[session])
    return times


def most_at_once(times: Iterable[tuple[float, float]]) -> int:
    """How many of these spans share a moment."""
    turns = sorted((moment, change) for span in times for moment, change in zip(span, (1, -1), strict=True))
    return max(accumulate(change for _, change in turns), default=0)


def judge(clone: Clone) -> tuple[list[Claim], dict[str, Any]]:
    """The claims, and what of each experiment differs."""
    states = queue_states(clone.folder)
    done = [name for name, state in states.items() if state == "Success"]
    in_wandb = list(wandb_runs(clone.folder).values())
    tracked: dict[str, dict[str, list[Values]]] = {
        "MLflow": {name: [r.data.metrics for r in mlflow_runs(clone.folder, DVC_EXP_NAME=name)] for name in done},
        "W&B": {name: [run.summary for run in in_wandb if run.name == name] for name in done},
    }
    files = {name: (written(clone.folder, rev=name), headline(clone.folder, rev=name)) for name in done}
    times = training_times(clone)
    claims = [
        Claim("experiments done", len(done), ">=", EXPERIMENTS),
        Claim("trainings at one time", most_at_once(times.values()), ">=", JOBS),
    ]
    wrong: dict[str, dict[str, list[str]]] = {}
    for tracker, runs in tracked.items():
        wrong[tracker] = {
            name: differing(files[name][0], found[0]) + differing_headline(files[name][1], found[0])
            for name, found in runs.items()
            if found
        }
        alone = sum(len(found) != 1 for found in runs.values())
        claims += [
            Claim(f"{tracker}: experiments without one run of their own", alone, "<=", 0),
            Claim(f"{tracker}: values missing or differing", sum(map(len, wrong[tracker].values())), "<=", 0),
        ]
    first = min((start for start, _ in times.values()), default=0)
    return claims, {
        "experiments": states,
        "seconds from the first training's start": {
            name: [round(moment - first) for moment in span] for name, span in times.items()
        },
        "differing": wrong,
        "values compared": sum(len(values) + len(few) for values, few in files.values()),
    }


def main() -> None:
    """Run, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Keep the clone here. None: a temporary folder.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = prepare(args.folder or Path(temporary))
        queue = run_grid(clone)
        claims, facts = judge(clone)
        facts = queue | {"load": os.getloadavg()} | facts
        conclude(claims, facts, args.output, "dvc", "kombu", "mlflow", "wandb")


if __name__ == "__main__":
    main()
