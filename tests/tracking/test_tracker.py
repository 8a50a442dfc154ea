import csv
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient
from selenium.webdriver.support.ui import WebDriverWait
from werkzeug.serving import make_server

from knee_siglip.core.files import sha256
from knee_siglip.core.nesting import flatten
from knee_siglip.params.files import parse_params
from knee_siglip.params.sections import Params
from knee_siglip.tracking import sync as sync_module
from knee_siglip.tracking import tracker as tracker_module
from knee_siglip.tracking.backend import Point
from knee_siglip.tracking.mlflow_models import ENVIRONMENT
from knee_siglip.tracking.mlflow_run import RANKED_PER_CALL, MlflowRun
from knee_siglip.tracking.privacy import KINDS
from knee_siglip.tracking.runlog import RunLog, tracking_folder
from knee_siglip.tracking.sync import deliver, find_logs, find_pending
from knee_siglip.tracking.tracker import (
    NICENESS,
    SECONDS_REMOTE,
    attach_tracker,
    open_tracker,
    orders_for,
    remember_run,
)
from knee_siglip.tracking.wandb_run import WandbRun
from mute_server import MuteServer
from processes import twice_at_once
from tracking.conftest import Recorded

SILENT = {"mlflow": "none", "wandb": "none"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def silent_tracker(**kwargs):
    """Of a stage without DVCLive, whose process takes seconds."""
    return open_tracker(parse_params({"tracking": SILENT}), stage="sweep", facts={}, **kwargs)


def events_of(tracker):
    return RunLog(tracking_folder() / f"{tracker.run_id}.jsonl", "").read()


def only_run(uri):
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("knee-siglip").experiment_id])
    assert len(runs) == 1
    return client, runs[0]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def senders():
    """The processes that feed the trackers, those that have ended left out."""
    children = psutil.Process().children()
    return [child for child in children if any("tracking.sender" in word for word in _command(child))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_same_figures_lie_in_all_three_trackers(recorded):
    expected = flatten(recorded.train_metrics)
    _, run = only_run(recorded.mlflow_uri)
    summary = {}
    for record in recorded.wandb_records(0):
        summary |= record.get("summary", {}).get("update", {})
    live = flatten(json.loads((recorded.root / "reports/train/live/metrics.json").read_text()))
    for place, separator in ((run.data.metrics, "/"), (summary, "/"), (live, ".")):
        assert {key: place[key.replace(".", separator)] for key in expected} == expected


def test_speeds_are_tracked_but_stay_out_of_the_folder_that_dvc_hashes(recorded):
    _, run = only_run(recorded.mlflow_uri)
    assert run.data.metrics["speed/pairs_per_second"] == 8.0
    live = recorded.root / "reports/train/live"
    assert "speed" not in json.loads((live / "metrics.json").read_text())
    assert not list(live.rglob("*pairs_per_second*"))


def test_curves_are_whole_and_non_finite_values_harm_nobody(recorded):
    client, run = only_run(recorded.mlflow_uri)
    losses = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss"))
    assert losses[:3] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert math.isnan(client.get_metric_history(run.info.run_id, "val/loss")[1].value)
    assert math.isnan(client.get_metric_history(run.info.run_id, "train/scale")[0].value)  # inf is no 1.8e308
    history = [record["history"]["item"] for record in recorded.wandb_records(0) if record["type"] == "history"]
    assert [row["train/loss"] for row in history if "train/loss" in row] == [3.0, 2.0, 1.0]
    with (recorded.root / "reports/train/live/plots/metrics/train/loss.tsv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file, delimiter="\t")] == [3.0, 2.0, 1.0]
    assert recorded.warnings == []


def test_the_run_carries_its_tags_params_and_facts(recorded):
    _, run = only_run(recorded.mlflow_uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["DVC_EXP_NAME"] == "sunny-knee"
    assert (run.data.tags["stage"], run.data.tags["data_hash"]) == ("train", "d" * 32)
    assert run.data.params["train.learning_rate"] == str(Params().train.learning_rate)
    assert run.data.params["parameters.total"] == "418000"
    opened = next(record["run"] for record in recorded.wandb_records(0) if record["type"] == "run")
    assert (opened["run_id"], opened["project"], opened["display_name"]) == (
        recorded.run_id,
        "knee-siglip",
        "sunny-knee",
    )
    assert opened["config"]["update"]["DVC_EXP_NAME"] == "sunny-knee"


def only_model(uri):
    client, run = only_run(uri)
    best, last = client.search_logged_models([run.info.experiment_id], order_by=[{"field_name": "metrics.test/loss"}])
    assert (last.name, "test/loss" in [metric.key for metric in last.metrics]) == ("final_model", False)
    return client, run, best


def test_a_checkpoint_is_a_model_of_its_run_that_mlflow_can_load_and_w_and_b_gets_its_checksums_alone(recorded):
    client, run, model = only_model(recorded.mlflow_uri)
    assert (model.name, model.status, model.source_run_id) == ("model", "READY", run.info.run_id)
    assert model.model_id in [output.model_id for output in run.outputs.model_outputs]
    assert model.tags["sha256"] == sha256(recorded.root / "model.pt")
    assert model.tags["get"].endswith(f"{model.tags['md5']} -- dvc.lock | tail -1 | xargs dvc get . model.pt --rev")
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert folder.is_relative_to(recorded.root / "mlartifacts")
    kept = folder / "artifacts/model.pt"
    assert kept.stat().st_ino == (recorded.root / "model.pt").stat().st_ino  # linked: no second copy
    assert not list((recorded.root / ".store/tracking/files").rglob("*.pt"))  # what MLflow holds is kept nowhere else
    assert str(recorded.root) not in (folder / "MLmodel").read_text()
    assert [file.path for file in client.list_artifacts(run.info.run_id) if file.path != "model"] == ["figures"]
    records = recorded.wandb_records(0)
    artifact, _ = [record["artifact"] for record in records if record["type"] == "artifact"]
    assert (artifact["name"], artifact["type"]) == ("model", "model")
    assert json.loads(artifact["metadata"]) | {"data_hash": "d" * 32} == json.loads(artifact["metadata"])
    assert not artifact["manifest"].get("contents")
    assert "train.csv" not in json.dumps(records)  # a path of data may name a patient
    assert sha256(recorded.root / "model.pt") in json.dumps(records)


def test_a_model_is_ranked_by_what_training_and_evaluation_measured_on_the_data(recorded):
    client, run, model = only_model(recorded.mlflow_uri)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("knee-siglip", "d" * 32)
    assert json.loads(given.dataset.source) == {"uri": "data/sample/train.csv"}
    assert json.loads(given.dataset.profile) == {"dataset.train_rows": 8, "dataset.test_rows": 2}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    measured = {metric.key: metric for metric in model.metrics}
    assert {key: measured[key.replace(".", "/")].value for key in recorded.test_metrics} == recorded.test_metrics
    assert measured["best_epoch"].value == 2
    assert measured["test/loss"].dataset_digest == "d" * 32
    for key in run.data.metrics:  # what a model gets too is not there twice
        history = client.get_metric_history(run.info.run_id, key)
        assert len({(point.step, point.value) for point in history}) == len(history), key


@pytest.fixture
def run_page(recorded) -> Iterator[str]:
    """Address of the run's page, from MLflow's own web server: in this process, which has imported most of it."""
    from mlflow.server import app, handlers

    files = (recorded.root / "files").as_uri()
    handlers.initialize_backend_stores(recorded.mlflow_uri, recorded.mlflow_uri, files)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _, run = only_run(recorded.mlflow_uri)
    yield f"http://127.0.0.1:{server.port}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    server.shutdown()


def test_mlflows_run_page_shows_what_its_users_look_for(browser, run_page):
    overview = {"sunny-knee", "Finished", "final_model", "test/zero_shot_kl/accuracy", "train.learning_rate"}
    groups_of_charts = {"train", "val", "test"}
    for address, expected in (
        (run_page, overview | {f"knee-siglip ({'d' * 32})"}),
        (f"{run_page}/model-metrics", groups_of_charts),
    ):
        browser.get(address)
        assert WebDriverWait(browser, 60).until(
            lambda shown, expected=expected: expected <= set(shown.find_element("tag name", "body").text.splitlines()),
            f"not all of {expected}",
        )


def test_the_machines_load_is_logged_on_request(recorded, monkeypatch):
    for name, value in {**ENVIRONMENT, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.01"}.items():
        monkeypatch.setenv(name, value)
    watching = MlflowRun(recorded.mlflow_uri, recorded.root.as_uri(), system_metrics=True)
    start = {"project": "watched", "run": "w", "name": "w", "stage": "train", "source": "s", "session": "s", "time": 0}
    run = watching.open({**start, "tags": {}, "config": {}, "goes_on": True}, [])
    client = MlflowClient(recorded.mlflow_uri)
    while "system/cpu_utilization_percentage" not in client.get_run(run).data.metrics:
        time.sleep(0.05)
    watching.close("FINISHED", complete=True)
    assert [orders.options["system_metrics"] for orders in orders_of({"system_metrics": True})] == [True, True]


def test_only_a_training_makes_its_senders_stand_back():
    log, tracking = RunLog(Path("run.jsonl"), "s"), parse_params({}).tracking
    assert {orders.niceness for orders in orders_for(tracking, log, Path.cwd(), live=Path.cwd())} == {NICENESS}
    assert {orders.niceness for orders in orders_for(tracking, log, Path.cwd())} == {0}


def test_a_run_that_a_slow_server_made_twice_is_one_in_the_end(recorded, monkeypatch):
    for name, value in {**ENVIRONMENT, "MLFLOW_EXPERIMENT_NAME": "mine"}.items():  # the user's own settings win
        monkeypatch.setenv(name, value)
    sending, client = MlflowRun(recorded.mlflow_uri, recorded.root.as_uri()), MlflowClient(recorded.mlflow_uri)
    start = {"project": "twice", "run": "t", "name": "t", "stage": "train", "source": "s", "session": "s", "time": 0}
    run = sending.open({**start, "tags": {}, "config": {}, "goes_on": True}, [])
    experiment = client.get_run(run).info.experiment_id
    client.create_run(experiment, tags={"knee_siglip.run": "t"})
    sending.close("FINISHED", complete=True)
    assert client.get_experiment(experiment).name == "mine"
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run]


def begun(uri, folder, run="r", project="begun"):
    """An MLflow client of ours, and the first event of a run."""
    start = {"project": project, "run": run, "name": run, "stage": "train", "source": "s", "session": "s", "time": 0}
    return MlflowRun(uri, folder.as_uri()), {**start, "tags": {}, "config": {}, "goes_on": True}


def test_a_run_that_was_deleted_is_not_written_to_and_one_whose_experiment_was_renamed_goes_on(recorded, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(recorded.mlflow_uri)
    sending, start = begun(recorded.mlflow_uri, recorded.root)
    model = {"kind": "model", "path": "best_model.pt", "how": "reference", "sha256": "b" * 64}
    run = sending.open(start, [])
    sending.artifact(model)
    earlier = [{"event": "opened", "session": "other", "backend": "mlflow", "id": run}]
    experiment = client.get_run(run).info.experiment_id
    client.rename_experiment(experiment, "renamed")
    again, start = begun(recorded.mlflow_uri, recorded.root)
    evaluation = start | {"tags": {"model_sha256": "b" * 64}}
    assert again.open(evaluation, earlier) == run
    again.summary([Point("test.loss", 0.5, 0, 1.0)])
    assert [metric.key for metric in client.search_logged_models([experiment])[0].metrics] == ["test/loss"]
    client.delete_run(run)
    anew = MlflowRun(recorded.mlflow_uri, recorded.root.as_uri()).open(evaluation | {"parent_id": run}, earlier)
    assert client.get_run(anew).info.lifecycle_stage == "active"
    assert "mlflow.parentRunId" not in client.get_run(anew).data.tags


def test_figures_that_arrive_twice_are_held_once(recorded, monkeypatch):
    """An attempt that was given up arrives after all; an evaluation has hundreds of figures."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    start = {"project": "late", "run": "l", "name": "l", "stage": "evaluate", "source": "s", "session": "s", "time": 0}
    start |= {"tags": {"model_sha256": "a" * 64}, "config": {}, "goes_on": True}
    given_up, again = [MlflowRun(recorded.mlflow_uri, recorded.root.as_uri()) for _ in range(2)]
    given_up.open(start | {"tags": {}}, [])
    given_up.artifact({"kind": "model", "path": "best_model.pt", "how": "reference", "sha256": "a" * 64})
    given_up.open(start, [])
    run = again.open(start, [])
    points = [Point(f"test.figure_{number}", number, 0, 1.0) for number in range(RANKED_PER_CALL + 1)]
    for attempt in (again, given_up):
        attempt.summary(points)
    client = MlflowClient(recorded.mlflow_uri)
    assert len(client.get_metric_history(run, "test/figure_0")) == 1
    (model,) = client.search_logged_models([client.get_run(run).info.experiment_id])
    assert len(model.metrics) == len({metric.key for metric in model.metrics}) == len(points)


def orders_of(tracking):
    log = RunLog(Path("run.jsonl"), "s")
    orders = orders_for(parse_params({"tracking": tracking}).tracking, log, Path("/root-of-it"), live=Path.cwd())
    return [order for order in orders if order.backend != "dvclive"]


@pytest.mark.parametrize(
    ("asked", "uri"),
    [
        ("auto", "sqlite:////root-of-it/mlflow.db"),
        ("sqlite:///own.db", "sqlite:////root-of-it/own.db"),  # a temporary run's folder is deleted
        ("sqlite:////elsewhere/own.db", "sqlite:////elsewhere/own.db"),
        ("databricks", "databricks"),
    ],
)
def test_files_stay_on_this_machine_in_a_database_that_lasts(asked, uri):
    options = {order.options.get("uri"): order.kinds for order in orders_of({"mlflow": asked, "wandb": "none"})}
    assert options == {uri: [] if asked == "databricks" else KINDS["all"]}


def test_only_servers_limit_the_size_of_what_they_get():
    local, wandb = orders_of({"upload_limit_mb": 2})
    (server,) = orders_of({"upload_limit_mb": 2, "mlflow": "http://127.0.0.1:5000", "wandb": "none"})
    assert (local.largest, wandb.largest, server.largest) == (math.inf, 2e6, 2e6)


def test_w_and_b_keeps_cases_and_reports_when_asked_offline_where_there_is_no_connection(project, monkeypatch):
    own = {"PROJECT": "mine", "MODE": "online", "INIT_TIMEOUT": "1", "LOGIN_TIMEOUT": "1"}  # the user's settings win
    for name, value in {**own, "BASE_URL": f"http://127.0.0.1:{closed_port()}", "API_KEY": "0" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    cases, rows = project / "cases.csv", project / "predictions.parquet"
    cases.write_text("split,kl_grade\ntest,3\n")
    rows.write_bytes(b"P00001")
    tracking = {"mlflow": "none", "send": "metrics_and_reports"}
    with open_tracker(parse_params({"tracking": tracking}), stage="evaluate", facts={}) as tracker:
        tracker.log_artifact(cases, "report", "tables")
        tracker.log_artifact(rows, "patients", "evaluation")
    records = Recorded(project, tracker.run_id).wandb_records(0)
    artifacts = {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}
    assert [entry["path"] for entry in artifacts["evaluate"]["manifest"]["contents"]] == ["tables/cases.csv"]
    shown = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert [item["tables/cases"]["nrows"] for item in shown if "tables/cases" in item] == [1]
    assert "predictions" not in json.dumps(records)
    assert {record["run"]["project"] for record in records if record["type"] == "run"} == {"mine"}
    assert list((tracking_folder() / "files").rglob("cases.csv"))  # which the offline run refers to
    (pending,) = find_pending(find_logs(tracking_folder(), []))
    assert pending.cause.endswith("the run was written offline")


class ConnectedRun:
    """Notes what a run of W&B's server is said to use."""

    dir, id = "/nowhere", "r"

    def __init__(self):
        self.summary, self.used = {}, []

    def use_artifact(self, artifact):
        self.used.append(artifact if isinstance(artifact, str) else (artifact.type, artifact.metadata))


@pytest.mark.parametrize(
    ("tags", "used"),
    [
        ({"data_hash": "d"}, ("dataset", {"data_hash": "d", "dataset.train_rows": 8})),
        ({"data_hash": "d", "model_sha256": "a" * 64}, f"best_model:sha256-{'a' * 16}"),
    ],
)
def test_online_a_training_uses_the_data_and_an_evaluation_the_model(project, monkeypatch, tags, used):
    for name in ("ERROR_REPORTING", "DATA_DIR", "CACHE_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(project))
    online, connected = WandbRun(str(project), "online"), ConnectedRun()
    online.connected = True
    monkeypatch.setattr(online, "_init", lambda start, first, config: connected)
    online.open({"session": "s", "stage": "train", "tags": tags, "config": {"dataset.train_rows": 8, "seed": 0}}, [])
    assert connected.used == [used]


def test_evaluation_goes_on_with_the_run_that_trained_the_model(recorded):
    _, run = only_run(recorded.mlflow_uri)
    expected = {key.replace(".", "/"): value for key, value in recorded.test_metrics.items()}
    assert {key: run.data.metrics[key] for key in expected} == expected
    assert (run.data.tags["stage"], run.data.tags["evaluate.stage"]) == ("train", "evaluate")
    assert (run.data.params["evaluate.splits"], run.data.tags["complete"]) == ("['test']", "yes")
    records = recorded.wandb_records(1)
    assert {record["run"]["run_id"] for record in records if record["type"] == "run"} == {recorded.run_id}
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert {key: summary[key] for key in expected} == expected
    assert summary["complete"] == "yes"


def test_nothing_leaves_the_machine_or_touches_the_home_folder_or_the_seeded_generators(recorded):
    assert recorded.visitors == 0
    assert list((recorded.root / "home").iterdir()) == []
    assert recorded.random_state_kept


def test_what_a_dead_server_missed_is_sent_later_and_once(
    recorded, project, tmp_path, monkeypatch, caplog, knee_siglip
):
    """The server is down for all of the run; a last attempt at its end is not told as another failure."""
    dead = MuteServer()
    tracking = {"wandb": "none", "mlflow": dead.url.replace("//", "//me:secret@")}
    figure = project / "figure.csv"
    figure.write_text("a")
    with open_tracker(parse_params({"tracking": tracking}), stage="sweep", facts={}) as tracker:
        for step in range(3):
            tracker.log_metrics({"train.loss": 3.0 - step}, step)
        tracker.log_summary({"train.loss": 1.0, "val.loss": 0.5})
        tracker.log_artifact(figure, "report", "tables")
        tracker.log_artifact(Path(shutil.copy(recorded.root / "model.pt", project)), "model")
    assert "MLflow does not hold all of this run" in caplog.text
    assert "knee-siglip sync" in caplog.text
    assert "secret" not in json.dumps(events_of(tracker)) + caplog.text
    assert dead.visitors > 0
    figure.unlink()  # as the folder of a queued experiment is
    (kept,) = (tracking_folder() / "files" / tracker.run_id).iterdir()
    shutil.copytree(kept, tmp_path / "spare")

    shutil.copy(recorded.root / "mlflow.db", project)
    tracking = parse_params({"tracking": {"wandb": "none", "project_name": "later"}}).tracking
    (pending,) = find_pending(find_logs(tracking_folder(), []))
    assert (pending.run, pending.backend) == (tracker.run_id, "mlflow")
    params, inside = project / "params.yaml", project / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)  # the project's params count there too
    params.write_text("tracking: {mlflow: none}")
    assert knee_siglip("sync")[:2] == (1, f"{pending}\nMLflow is off now (tracking.mlflow: none)\n0 of 1 sent\n")
    params.write_text("tracking: {wandb: none, project_name: later}")
    (code, said), (_, also_said) = twice_at_once(project, "sync")
    assert (code, said.splitlines()[-1]) == (0, "1 of 1 sent")
    assert also_said.startswith(("error: another process is sending runs", "nothing is pending"))
    assert find_pending(find_logs(tracking_folder(), [tracker.run_id])) == []
    assert not kept.exists()  # MLflow has them
    shutil.copytree(tmp_path / "spare", kept)
    assert deliver([pending], tracking, project) == []  # as if the note of it were lost
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("knee-siglip").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`knee_siglip.run` = '{tracker.run_id}'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert (run.data.metrics["val/loss"], run.data.tags["complete"]) == (0.5, "yes")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "tables")] == ["tables/figure.csv"]
    models = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id for model in models]
    assert [(model.name, model.status) for model in models] == [("model", "READY")]


def test_one_process_sends_all_sessions_of_a_run_in_order(project, monkeypatch):
    started = []
    monkeypatch.setattr(sync_module, "start_senders", lambda orders: started.extend(orders) or [])
    for session in ("train-1", "evaluate-1"):
        log = RunLog(tracking_folder() / "r.jsonl", session)
        log.write("start", name="r", stage=session, backends=["mlflow"])
    pending = find_pending([log.path])
    assert deliver(pending, parse_params({}).tracking, project) == pending
    assert [orders.session for orders in started] == ["evaluate-1"]
    assert [event["session"] for event in log.read() if event["event"] == "failed"] == ["train-1"]


@pytest.mark.parametrize(("limit", "error"), [("SECONDS_REMOTE", None), ("SECONDS_KILLED", KeyboardInterrupt)])
def test_a_server_that_never_answers_is_given_up_soon_if_the_run_was_told_to_stop(
    project, monkeypatch, caplog, limit, error
):
    monkeypatch.setattr(tracker_module, limit, 0.0)
    with socket.create_server(("127.0.0.1", 0)) as mute, suppress(KeyboardInterrupt):
        tracking = {"mlflow": f"http://127.0.0.1:{mute.getsockname()[1]}", "wandb": "none"}
        with open_tracker(parse_params({"tracking": tracking}), stage="evaluate", facts={}) as tracker:
            assert len(senders()) == 1
            tracker.log_metrics({"test.loss": 1.0}, step=0)
            if error:
                raise error
    assert len(caplog.records) == 1
    waited = re.search(r"MLflow does not hold all of this run \(not done (\d+) s", caplog.text)
    assert waited
    assert int(waited[1]) < SECONDS_REMOTE
    assert senders() == []


def test_a_sender_that_dies_is_started_again_with_one_warning(project, caplog):
    tracking = {"mlflow": "none", "wandb": "offline"}
    with open_tracker(parse_params({"tracking": tracking}), stage="evaluate", facts={}) as tracker:
        (sender,) = senders()
        sender.kill()
        _wait_until_dead(sender)
        for step in range(3):
            tracker.log_metrics({"test.loss": 1.0}, step)
    assert len(caplog.records) == 1
    assert "W&B failed (its process ended with exit code -9)" in caplog.text
    assert find_pending(find_logs(tracking_folder(), [])) == []


def _wait_until_dead(process):
    """Without taking its exit code, which belongs to the tracker."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FINISHED")],
)
def test_the_way_a_run_ends_is_logged(project, error, status):
    def run(tracker):
        with tracker:
            if error:
                raise error

    tracker = silent_tracker()
    if error:
        with pytest.raises(error):
            run(tracker)
    else:
        run(tracker)
    assert events_of(tracker)[-1]["status"] == status


def test_an_interrupted_run_is_continued_and_a_finished_one_is_not(project):
    first = silent_tracker(run_key="f" * 8)
    first.log_metrics({"train.loss": 1.0}, step=7)
    second = silent_tracker(run_key="f" * 8)
    assert second.run_id == first.run_id
    second.close()
    assert silent_tracker(run_key="f" * 8).run_id != first.run_id


def attached(model, stage="evaluate", figures=None, **params):
    with attach_tracker(
        parse_params({"tracking": SILENT} | params), stage=stage, model=sha256(model), figures=figures or {}
    ) as tracker:
        return tracker


def starts_of(tracker):
    return [event for event in events_of(tracker) if event["event"] == "start"]


@pytest.fixture
def trained(project):
    """A model file and the run that trained it."""
    model = project / "model.pt"
    model.write_bytes(b"a")
    with silent_tracker() as tracker:
        remember_run(tracker, model)
    return model, tracker.run_id


def test_another_evaluation_of_a_model_is_a_run_of_its_own_and_going_back_is_the_first(trained):
    model, run = trained
    first = {"figures": {"test": {"loss": 1.0}}}
    other = {"figures": {"val": {"loss": 2.0}}, "evaluate": {"splits": ["val"]}}
    assert attached(model, **first).run_id == run
    child = attached(model, **other)
    assert child.run_id != run
    (start,) = starts_of(child)
    assert (start["parent"], start["config"]["evaluate.splits"], start["config"]["seed"]) == (run, ["val"], 0)
    assert attached(model, **first).run_id == run
    assert attached(model, **other).run_id == child.run_id
    assert attached(model, figures={"test": {"loss": 1.5}}).run_id not in (run, child.run_id)  # other code


def test_a_training_that_makes_a_known_model_names_the_run_with_its_figures(trained):
    model, run = trained
    with silent_tracker() as again:
        remember_run(again, model)
    tags = [event["values"] for event in events_of(again) if event["event"] == "tags"]
    assert tags == [{"model_sha256": sha256(model), "same_model_as": run}]


def test_inference_joins_the_evaluation_with_the_same_params(trained):
    model, run = trained
    other = {"evaluate": {"splits": ["val"]}}
    attached(model)
    child = attached(model, **other)
    assert attached(model, stage="infer").run_id == run
    assert attached(model, stage="infer", **other).run_id == run  # the same results: they depend on no split
    assert attached(model, stage="infer", figures={"rows": 2}, **other).run_id == child.run_id


def test_a_model_trained_elsewhere_gets_one_run_that_names_it(project):
    model = project / "pulled.pt"
    model.write_bytes(b"b")
    evaluation = attached(model)
    (start,) = starts_of(evaluation)
    assert start["tags"]["model_sha256"] == sha256(model)
    assert attached(model, stage="infer").run_id == evaluation.run_id


def test_a_store_that_cannot_be_written_costs_the_tracking_and_not_the_run(project, monkeypatch, caplog):
    (project / "full").write_text("")
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(project / "full"))
    with open_tracker(parse_params({}), stage="evaluate", facts={}) as tracker:
        tracker.log_metrics({"test.loss": 1.0}, step=0)
    first, last = caplog.messages
    assert "the run continues, and it is tried again" in first
    assert "lacks the end of this run" in last


def test_a_missing_artifact_is_said_and_skipped(project, caplog):
    with silent_tracker() as tracker:
        tracker.log_artifact(project / "no.png", "report")
    assert "no.png" in caplog.text
    assert "artifact" not in [event["event"] for event in events_of(tracker)]


def test_only_the_first_of_several_processes_logs(project, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with open_tracker(parse_params({}), stage="train", facts={}) as tracker:
        tracker.log_metrics({"train.loss": 1.0}, step=0)
        assert senders() == []
    assert not tracking_folder().exists()


KILLED_TRAINING = """
import os, psutil, signal
from knee_siglip.params.files import parse_params
from knee_siglip.tracking.tracker import open_tracker

tracker = open_tracker(parse_params({"tracking": {"mlflow": "none"}}), stage="evaluate", facts={})
tracker.log_metrics({"test.loss": 0.25}, step=0)
print(psutil.Process().children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_training_that_was_killed_leaves_no_running_run_and_loses_no_value(project):
    killed = subprocess.run([sys.executable, "-c", KILLED_TRAINING], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(killed.stdout)).wait(timeout=120)
    folder = next((project / "wandb").glob("offline-run-*"))
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    records = [
        json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    ]
    assert [record["history"]["item"]["test/loss"] for record in records if record["type"] == "history"] == [0.25]
    assert records[-1]["exit"]["exit_code"] == 130


def test_importing_the_tracker_loads_none_of_the_slow_libraries():
    code = "import sys, knee_siglip.tracking.tracker; print(*{'mlflow','wandb','dvclive','torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
