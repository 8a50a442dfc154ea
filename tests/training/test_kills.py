"""A training that is killed at any moment ends with the weights of one that was not, bit for bit."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from knee_siglip.core import paths
from training_process import run, start, told_file, wait_until

KILLS = 10


def clear_outs(files):
    """What DVC does when a stage starts."""
    for path in (files.best_model, files.final_model, files.report / "metrics.json"):
        path.unlink(missing_ok=True)


def results(files):
    """Weights of both models, and metrics.json."""
    found = {}
    for path in (files.best_model, files.final_model):
        content = torch.load(path, weights_only=True)
        found |= {f"{path.name} {name}": weight for name, weight in content["weights"].items()}
    return found, json.loads((files.report / "metrics.json").read_text())


def assert_equal(found, expected):
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert [name for name in expected[0] if not torch.equal(found[0][name], expected[0][name])] == []


@pytest.fixture
def params(make_params):
    """EMA, augmentation and a schedule to lose, a state every other step, an epoch of four steps."""
    return make_params(epochs=3, save_every_steps=2, ema_decay=0.9, warmup_ratio=0.3)


def test_killed_at_random_moments_it_ends_as_if_undisturbed(files, params, tmp_path):
    assert run(files, params, None, str(tmp_path / "calls")) == 0
    expected, calls = results(files), int((tmp_path / "calls").read_text())
    rng = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        clear_outs(files)
        code = run(files, params, int(rng.integers(1, calls)))
        kills += code == -signal.SIGKILL
        if code == 0:  # it went on so late that it ended first
            assert_equal(results(files), expected)
    clear_outs(files)
    assert run(files, params) == 0
    assert_equal(results(files), expected)
    assert list((paths.store_root() / paths.RUNS).iterdir()) == []


def test_asked_to_stop_it_saves_says_so_and_goes_on_there(files, make_params):
    """Three times in one training, by another signal each."""
    params = make_params(epochs=8)
    assert run(files, params) == 0
    expected = results(files)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        clear_outs(files)
        child = start(files, params)
        wait_until(files.best_model.exists, child)  # the first epoch is over
        os.kill(child.pid, number)
        child.join()
        assert child.exitcode == code
        told = told_file(files).read_text()
        stopped = re.search(rf"{number.name}: training stopped at step (\d+) of 32 and saved its state; ", told)
        assert stopped
        assert "rerun the same command to resume" in told
        assert ("resuming at step" in told) == (number != signal.SIGTERM)
        assert "Traceback" not in told
        (folder,) = (paths.store_root() / paths.RUNS).iterdir()
        assert max(int(state.stem.removeprefix("step-")) for state in folder.glob("*.state")) == int(stopped[1])
    clear_outs(files)
    assert run(files, params) == 0
    assert "resuming at step" in told_file(files).read_text()
    assert_equal(results(files), expected)


def test_a_state_of_other_params_is_not_picked_up(files, params, make_params):
    child = start(files, make_params(epochs=30, save_every_steps=1))
    states = wait_until(lambda: list(paths.store_root().glob(f"{paths.RUNS}/*/*.sha256")), child)
    child.kill()
    child.join()
    assert run(files, params) == 0
    assert "resuming" not in told_file(files).read_text()
    assert results(files)[1]["epochs_done"] == 3
    assert any(state.exists() for state in states[0].parent.glob("*.state"))  # it may still be gone on with
