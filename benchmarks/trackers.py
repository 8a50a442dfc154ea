"""What a faulty MLflow server costs a training, and what it lacks at the end and after `knee-siglip sync`.

    python benchmarks/trackers.py [--steps 40]

A real `mlflow server` on loopback stands behind a proxy that refuses, hangs, answers byte by byte or with an HTTP
status, or wants another password; or it is the server that restarts, a disk (the run's own or the server's) that is
full, or the tracker's process that is killed. A full disk is a limit of the process's files (RLIMIT_FSIZE). Each run
logs a curve, final values and a file. "slowed": share of the run's time spent in tracking calls, the start included.
"wait": seconds at the run's end. A figure is missing, or doubled, by what the server itself then holds.
"""

import argparse
import base64
import http.client
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from claims import Claim, conclude
from mlflow.tracking import MlflowClient

from knee_siglip.params.files import parse_params
from knee_siglip.tracking.runlog import tracking_folder
from knee_siglip.tracking.sync import deliver, find_logs, find_pending
from knee_siglip.tracking.tracker import open_tracker

USER, PASSWORD = "reader", "right"
STEP_SECONDS = 0.5
SERVER_SECONDS = 600.0

Act = Callable[[], None]


@dataclass
class Row:
    """What one fault did. missing and doubled: of the points, final values and files that were logged."""

    fault: str
    slowed: float
    worst_call_ms: float
    wait: float
    missing_at_end: int
    missing_after_sync: int
    doubled_after_sync: int


class Proxy:
    """Passes connections on to a port, or does what `mode` says: refuse, hang, drip, ask (a password), or a status."""

    def __init__(self, target: int) -> None:
        self.target, self.mode = target, "pass"
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self.mode == "pass":
                self._pass_on(client)
            elif self.mode == "ask":
                asked = client.recv(65536)
                given = base64.b64encode(f"{USER}:{PASSWORD}".encode())
                if b"authorization: basic " + given.lower() in asked.lower():
                    self._pass_on(client, asked)
                else:
                    _refuse(client, "401")
            elif self.mode == "hang":
                time.sleep(3600)
            elif self.mode == "drip":
                client.recv(65536)
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100000:
                    client.sendall(bytes([byte]))
                    time.sleep(1)
            elif self.mode.isdigit():
                client.recv(65536)
                _refuse(client, self.mode)

    def _pass_on(self, client: socket.socket, asked: bytes = b"") -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            server.sendall(asked)
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _refuse(client: socket.socket, status: str) -> None:
    client.sendall(f"HTTP/1.1 {status} no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Server:
    """A real MLflow server, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = f"sqlite:///{self.folder}/server.db"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=self.folder
        )
        deadline = time.monotonic() + SERVER_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError("the MLflow server did not start")
            time.sleep(0.2)

    def stop(self) -> None:
        """Kill it with its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def set_full(self, is_full: bool) -> None:
        """Let its processes make no file longer than a byte, or any."""
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            process.rlimit(psutil.RLIMIT_FSIZE, _file_limit(1 if is_full else resource.RLIM_INFINITY))

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


class Bench:
    """One server, one proxy, and the runs through them."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.server = Server(folder)
        self.proxy = Proxy(self.server.port)
        self.uri = f"http://127.0.0.1:{self.proxy.port}"

    def measure(self, fault: str, begin: Act, mend: Act, during: range | None = None) -> Row:
        """Train with the fault in the steps of `during`, or from before the start until after the end."""
        values = {"mlflow": self.uri, "wandb": "none", "send": "metrics_and_reports", "project_name": "faults"}
        params = parse_params({"tracking": values})
        table = self.folder / "table.csv"
        table.write_text("a\n1\n")
        costs: list[float] = []
        if during is None:
            begin()
        began = time.monotonic()
        with _timed(costs):
            tracker = open_tracker(params, stage="sweep", facts={})
        for step in range(self.steps):
            if during and step == during.start:
                begin()
            time.sleep(STEP_SECONDS)
            with _timed(costs):
                tracker.log_metrics({"train.loss": float(step)}, step)
            if during and step == during.stop - 1:
                mend()
        with _timed(costs):
            tracker.log_summary({"test.loss": 0.5, "test.accuracy": 0.75})
            tracker.log_artifact(table, "report", "tables")
        trained, ended = time.monotonic() - began, time.monotonic()
        tracker.close()
        wait = time.monotonic() - ended
        mend()
        missing, _ = self._lacks(tracker.run_id)
        for _ in range(2):  # the second time there must be nothing to do
            deliver(find_pending(find_logs(tracking_folder(), [tracker.run_id])), params.tracking, self.folder)
        after, doubled = self._lacks(tracker.run_id)
        return Row(fault, sum(costs) / trained, max(costs) * 1000, wait, missing, after, doubled)

    def _lacks(self, run_id: str) -> tuple[int, int]:
        """(missing, doubled) of all that was logged, as the server itself says."""
        client = MlflowClient(f"http://127.0.0.1:{self.server.port}")
        experiment = client.get_experiment_by_name("faults")
        query = f"tags.`knee_siglip.run` = '{run_id}'"
        runs = client.search_runs([experiment.experiment_id], query) if experiment else []
        expected = self.steps + 3
        if not runs:
            return expected, 0
        run = runs[0].info.run_id
        points = [point.step for point in client.get_metric_history(run, "train/loss")]
        finals = [len(client.get_metric_history(run, f"test/{name}")) for name in ("loss", "accuracy")]
        files = len(client.list_artifacts(run, "tables"))
        held = len(set(points)) + sum(map(bool, finals)) + files
        doubled = len(points) - len(set(points)) + sum(n - 1 for n in finals if n) + len(runs) - 1
        return expected - held, doubled


@contextmanager
def _timed(costs: list[float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    costs.append(time.monotonic() - began)


def _file_limit(size: int) -> tuple[int, int]:
    return size, resource.RLIM_INFINITY


def _kill_sender() -> None:
    for child in psutil.Process().children():
        if "knee_siglip.tracking.sender" in child.cmdline():
            child.kill()


def faults(bench: Bench) -> list[Row]:
    """Measure each fault."""
    middle = range(bench.steps // 4, bench.steps // 2)

    def set_mode(mode: str) -> Act:
        return lambda: setattr(bench.proxy, "mode", mode)

    def log_in(password: str, mode: str) -> None:
        os.environ.update(MLFLOW_TRACKING_USERNAME=USER, MLFLOW_TRACKING_PASSWORD=password)
        bench.proxy.mode = mode

    def restart() -> None:
        if bench.server.process.poll() is not None:
            bench.server.start()

    def limit_files(size: int) -> Act:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, _file_limit(size))

    passing = set_mode("pass")
    rows = [show(bench.measure("none", passing, passing))]
    for mode in ("refuse", "hang", "drip", "401", "429", "503"):
        rows.append(show(bench.measure(f"{mode}, all the time", set_mode(mode), passing)))
    for fault, begin, mend in (
        ("refuse, for a while", set_mode("refuse"), passing),
        ("503, for a while", set_mode("503"), passing),
        ("server restarts", bench.server.stop, restart),
        ("server's disk full", lambda: bench.server.set_full(True), lambda: bench.server.set_full(False)),
        ("run's disk full", limit_files(1), limit_files(resource.RLIM_INFINITY)),
        ("tracker process killed", _kill_sender, passing),
    ):
        rows.append(show(bench.measure(fault, begin, mend, middle)))
    wrong = "wrong password, all the time", lambda: log_in("wrong", "ask"), lambda: log_in(PASSWORD, "ask")
    return [*rows, show(bench.measure(*wrong))]


def show(row: Row) -> Row:
    """Print a line of the table."""
    print(
        f"{row.fault:28} slowed {row.slowed:7.3%}  worst call {row.worst_call_ms:6.1f} ms  wait {row.wait:5.1f} s  "
        f"missing {row.missing_at_end:3} at the end, {row.missing_after_sync} after sync, "
        f"doubled {row.doubled_after_sync}",
        flush=True,
    )
    return row


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    logging.getLogger("knee_siglip").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        os.environ.update({"DVC_ROOT": name, "KNEE_SIGLIP_STORE": f"{name}/store"})
        bench = Bench(Path(name), steps)
        try:
            rows = faults(bench)
        finally:
            bench.server.stop()
    claims = [
        Claim("training slowed by, worst fault", max(row.slowed for row in rows) * 100, "<=", 2, "%"),
        Claim("missing after sync, all faults", sum(row.missing_after_sync for row in rows), "<=", 0),
        Claim("doubled after sync, all faults", sum(row.doubled_after_sync for row in rows), "<=", 0),
    ]
    facts = {"steps": steps, "step_seconds": STEP_SECONDS, "load": os.getloadavg(), "rows": [asdict(r) for r in rows]}
    conclude(claims, facts, Path(__file__).with_suffix(".json"), "mlflow")


if __name__ == "__main__":
    main()
