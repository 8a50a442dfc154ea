"""The sender's loop in this process, on a tracker that does as it is told."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict

import psutil
import pytest

from knee_siglip.tracking import process, sender
from knee_siglip.tracking.backend import Point
from knee_siglip.tracking.dvclive_run import DvcliveRun
from knee_siglip.tracking.process import end_senders, prepare_sender, start_senders
from knee_siglip.tracking.runlog import RunLog, undelivered
from knee_siglip.tracking.sender import Orders, send

START = {"run": "r", "name": "n", "project": "p", "stage": "train", "backends": ["mlflow"], "tags": {}, "config": {}}


class Scripted:
    """Notes every call; raises at the one named."""

    def __init__(self, broken=None):
        self.broken = broken
        self.calls = []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, *args))
            if name == self.broken:
                raise RuntimeError(f"{name}\nbroke")
            return "its-id"

        return call

    @property
    def names(self):
        return [call[0] for call in self.calls]


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path / "r.jsonl", "train-1")
    log.write("start", **START)
    for step in range(3):
        log.write("metrics", values={"train.loss": 1.0}, step=step)
    log.write("summary", values={"train.loss": "nan"}, step=2)
    return log


def follow(log, backend, monkeypatch, alive=lambda: True):
    monkeypatch.setattr(sender, "create_backend", lambda name, options: backend)
    return send(Orders("mlflow", str(log.path), log.session, [], {}), alive)


def test_events_arrive_in_order_and_neighbouring_metrics_in_one_call(log, monkeypatch):
    log.write("end", status="FAILED")
    backend = Scripted()
    assert follow(log, backend, monkeypatch)
    assert backend.names == ["open", "metrics", "summary", "close"]
    assert [point.step for point in backend.calls[1][1]] == [0, 1, 2]
    assert backend.calls[-1] == ("close", "FAILED", True)


@pytest.mark.parametrize("broken", ["open", "metrics", "summary", "close"])
def test_a_tracker_that_raises_after_the_runs_end_is_left_alone(log, monkeypatch, broken):
    log.write("end", status="FINISHED")
    backend = Scripted(broken)
    assert not follow(log, backend, monkeypatch)
    assert backend.names[-1] == broken
    failures = [event for event in log.read() if event["event"] == "failed"]
    assert [(event["backend"], event["cause"]) for event in failures] == [("mlflow", f"RuntimeError: {broken} broke")]
    assert undelivered(log.read(), "mlflow") == ["train-1"]


def test_a_tracker_that_raises_during_a_run_is_tried_again_from_the_start(log, monkeypatch):
    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.0)
    backend, told = Scripted("metrics"), []

    def alive():
        if told:
            backend.broken = None
            log.write("end", status="FINISHED")
        return True

    monkeypatch.setattr(sender, "create_backend", lambda name, options: backend)
    assert send(Orders("mlflow", str(log.path), log.session, [], {}), alive, told.append)
    assert told == ["RuntimeError: metrics broke"]
    assert backend.names == ["open", "metrics", "open", "metrics", "summary", "close"]
    assert undelivered(log.read(), "mlflow") == []


def test_a_later_session_brings_what_an_earlier_one_could_not(log, monkeypatch):
    log.write("end", status="FINISHED")
    assert not follow(log, Scripted("open"), monkeypatch)
    evaluation = RunLog(log.path, "evaluate-1")
    evaluation.write("start", **START | {"stage": "evaluate"})
    evaluation.write("end", status="FINISHED")
    backend = Scripted()
    assert follow(evaluation, backend, monkeypatch)
    assert backend.names == ["open", "metrics", "summary", "close", "open", "close"]
    assert [call[2] for call in backend.calls if call[0] == "close"] == [False, True]  # complete only in the end


def test_a_call_without_an_answer_is_cut_off(log, monkeypatch):
    log.write("end", status="FINISHED")
    backend = Scripted()
    backend.metrics = lambda points: threading.Event().wait(60)
    monkeypatch.setattr(sender, "create_backend", lambda name, options: backend)
    assert not send(Orders("mlflow", str(log.path), log.session, [], {}, patience=0.05), lambda: True)
    assert "TimeoutError: no answer in 0 s" in log.read()[-1]["cause"]


@pytest.mark.parametrize(
    ("kinds", "largest", "sent"),
    [
        ([], 1, [("m", "reference")]),
        (["report"], 1, [("r", "copy"), ("m", "reference")]),
        (["report", "model"], 1, [("r", "copy"), ("m", "copy")]),
        (["report", "model"], 0.5, [("r", "copy"), ("m", "reference")]),
    ],
)
def test_a_tracker_gets_only_the_files_that_it_may(log, monkeypatch, kinds, largest, sent):
    for name, kind in (("r", "report"), ("p", "patients"), ("m", "model")):
        log.write("artifact", path=name, kind=kind, folder=kind, how="copy", bytes=1)
    log.write("end", status="FINISHED")
    backend = Scripted()
    monkeypatch.setattr(sender, "create_backend", lambda name, options: backend)
    assert send(Orders("mlflow", str(log.path), log.session, kinds, {}, largest=largest), lambda: True)
    assert [(call[1]["path"], call[1]["how"]) for call in backend.calls if call[0] == "artifact"] == sent


def test_a_killed_training_ends_its_run_as_killed(log, monkeypatch):
    backend = Scripted()
    assert follow(log, backend, monkeypatch, alive=lambda: False)
    assert backend.names == ["open", "metrics", "summary", "close"]
    assert backend.calls[-1] == ("close", "KILLED", True)


def test_what_is_logged_while_the_sender_runs_arrives(log, monkeypatch):
    backend = Scripted()
    asked = iter([None, lambda: log.write("metrics", values={"train.loss": 9.0}, step=3), None])

    def alive():
        action = next(asked, lambda: log.write("end", status="FINISHED"))
        if action:
            action()
        return True

    assert follow(log, backend, monkeypatch, alive)
    assert [point.step for call in backend.calls if call[0] == "metrics" for point in call[1]] == [0, 1, 2, 3]


def test_another_session_of_the_same_run_is_not_sent_twice(log, monkeypatch):
    evaluation = RunLog(log.path, "evaluate-1")
    evaluation.write("start", **START | {"stage": "evaluate"})
    evaluation.write("summary", values={"test.loss": 0.5}, step=2)
    evaluation.write("end", status="FINISHED")
    backend = Scripted()
    assert follow(evaluation, backend, monkeypatch)
    assert backend.names == ["open", "summary", "close"]
    (summary,) = [event for event in log.read() if event["event"] == "summary" and event["session"] == "evaluate-1"]
    assert backend.calls[1] == ("summary", [Point("test.loss", 0.5, 2, summary["time"])])


def test_ctrl_c_while_the_end_is_waited_for_leaves_no_sender(log, tmp_path, monkeypatch):
    """They are in sessions of their own, so that the terminal's Ctrl-C does not reach them."""
    orders = Orders("dvclive", str(log.path), log.session, [], {"folder": str(tmp_path / "live")})
    senders = start_senders([orders, orders])
    wait = senders[0].process.wait

    def interrupted(timeout=None):
        if timeout is not None:
            raise KeyboardInterrupt
        return wait()

    monkeypatch.setattr(senders[0].process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        end_senders(senders)
    assert [sender.process.returncode for sender in senders] == [-signal.SIGKILL] * 2


def test_a_process_that_was_started_in_advance_takes_the_next_orders(log, tmp_path):
    log.write("end", status="FINISHED")
    live = tmp_path / "live"
    orders = Orders("dvclive", str(log.path), log.session, [], {"folder": str(live)})
    prepare_sender("dvclive")
    prepared = process._prepared["dvclive"]
    prepare_sender("dvclive")
    senders = start_senders([orders])
    end_senders(senders)
    assert [sender.process for sender in senders] == [prepared]
    assert prepared.returncode == 0
    assert (live / "plots/metrics/train/loss.tsv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends after its import")
def test_a_process_without_orders_ends_with_the_one_that_started_it(tmp_path):
    (tmp_path / "mlflow.py").write_text("import time\ntime.sleep(300)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    code = "from knee_siglip.tracking import process; process.prepare_sender('mlflow'); "
    code += "print(process._prepared['mlflow'].pid)"
    code += "; import time; time.sleep(2)"  # its import has begun
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=20)
    assert not psutil.pid_exists(int(done.stdout))


def test_the_curves_of_an_interrupted_training_are_whole_again(log, tmp_path):
    resumed = RunLog(log.path, "train-2")
    resumed.write("start", **START)
    for step in (2, 3):  # the checkpoint was older than the last line of the log
        resumed.write("metrics", values={"train.loss": 5.0}, step=step)
    resumed.write("end", status="FINISHED")
    live = tmp_path / "live"
    assert send(Orders("dvclive", str(log.path), "train-2", [], {"folder": str(live)}), lambda: True)
    with (live / "plots/metrics/train/loss.tsv").open() as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file, delimiter="\t")]
    assert rows == [(0, 1.0), (1, 1.0), (2, 5.0), (3, 5.0)]


def test_a_curve_keeps_what_was_logged_just_before_the_state_was_saved(log, tmp_path):
    """A step's own metrics are logged before its state is saved, those of the epoch that it ends after a resume."""
    log.write("metrics", values={"train.step_loss": 4.0}, step=10)
    resumed = RunLog(log.path, "train-2")
    resumed.write("start", **START)
    resumed.write("metrics", values={"train.loss": 5.0}, step=10)
    resumed.write("end", status="FINISHED")
    live = tmp_path / "live"
    assert send(Orders("dvclive", str(log.path), "train-2", [], {"folder": str(live)}), lambda: True)
    assert (live / "plots/metrics/train/step_loss.tsv").read_text() == "step\tstep_loss\n10\t4.0\n"
    assert "10\t5.0" in (live / "plots/metrics/train/loss.tsv").read_text()


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_curve_has_one_value_per_step_however_many_points_come_at_once(tmp_path, at_once):
    points = [
        Point("learning_rate", 3.0, 10, 0),
        Point("learning_rate", 2.0, 20, 1),
        Point("learning_rate", 1.0, 20, 2),
    ]
    run = DvcliveRun(str(tmp_path))
    run.open({}, [])
    for start in range(0, len(points), at_once):
        run.metrics(points[start : start + at_once])
    assert (tmp_path / "plots/metrics/learning_rate.tsv").read_text() == "step\tlearning_rate\n10\t3.0\n20\t2.0\n"


TRAINING = """
import subprocess, sys
sender = subprocess.Popen([sys.executable, "-m", "knee_siglip.tracking.sender"], start_new_session=True)
print(sender.pid, flush=True)
sender.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is told that its parent has died")
def test_curves_of_a_killed_training_are_written_no_further(log, tmp_path):
    """The next training writes into the same folder. The sender's stdin stays open, so only the death can end it."""
    orders = Orders("dvclive", str(log.path), log.session, [], {"folder": str(tmp_path / "live")})
    training = subprocess.Popen([sys.executable, "-c", TRAINING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    training.stdin.write(json.dumps(asdict(orders)).encode() + b"\n")
    training.stdin.flush()
    sender_process = psutil.Process(int(training.stdout.readline()))
    try:
        while not (tmp_path / "live/metrics.json").exists():
            assert sender_process.is_running()
            time.sleep(0.05)
        os.kill(training.pid, signal.SIGKILL)
        training.wait()
        assert sender_process.wait(10) in (None, -signal.SIGKILL)
    finally:
        training.stdin.close()
