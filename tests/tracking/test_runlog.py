import json
import math
import resource

import numpy as np
import pytest

from knee_siglip.tracking.backend import points_of
from knee_siglip.tracking.runlog import RunLog, Tail, encode_values, last_id, last_step


def test_numbers_survive_the_log_and_everything_else_is_left_out():
    values = {"a": np.float32(0.5), "b": 3, "c": float("-inf"), "d": None, "e": "text", "f": [1], "g": True}
    encoded = encode_values(values | {"h": math.nan})
    event = json.loads(json.dumps({"event": "metrics", "values": encoded, "step": 0, "time": 0}))
    points = points_of([event])
    assert {point.key: point.value for point in points[:-1]} == {"a": 0.5, "b": 3.0, "c": float("-inf"), "g": 1.0}
    assert np.isnan(points[-1].value)


def test_a_half_written_line_waits_and_a_torn_one_is_left_out(tmp_path):
    log = RunLog(tmp_path / "run.jsonl", "s")
    log.write("metrics", values={}, step=4)
    tail = Tail(log.path)
    with log.path.open("ab") as file:
        file.write(b'{"event": "met')
    assert [event["step"] for event in tail.read()] == [4]
    assert tail.read() == []
    with log.path.open("ab") as file:
        file.write(b"\n")
    log.write("metrics", values={}, step=5)
    assert [event["step"] for event in tail.read()] == [5]


def test_what_a_full_disk_refused_is_written_when_there_is_room(tmp_path):
    log = RunLog(tmp_path / "run.jsonl", "s")
    log.write("metrics", values={}, step=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, hard))  # a disk with 10 bytes left
    try:
        for step in (1, 2):
            with pytest.raises(OSError, match=r"No space left|too large"):
                log.write("metrics", values={}, step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [event["step"] for event in log.read()] == [0]
    log.write("metrics", values={}, step=3)
    assert [event["step"] for event in log.read()] == [0, 1, 2, 3]


def test_the_last_step_and_id_are_found_again(tmp_path):
    log = RunLog(tmp_path / "run.jsonl", "s")
    assert (last_step(log.read()), last_id(log.read(), "mlflow")) == (0, None)
    log.write("metrics", values={}, step=9)
    log.write("opened", backend="mlflow", id="one")
    log.write("opened", backend="wandb", id="two")
    assert (last_step(log.read()), last_id(log.read(), "mlflow")) == (9, "one")
