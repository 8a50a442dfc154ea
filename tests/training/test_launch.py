"""Several devices by an environment variable."""

import pytest

from knee_siglip.core.errors import UsageError
from knee_siglip.training import launch
from knee_siglip.training.launch import LAUNCHER, hand_over


@pytest.fixture
def started(monkeypatch):
    """Commands that would have taken this process's place."""
    commands = []
    monkeypatch.setattr(launch.os, "execvp", lambda program, command: commands.append((program, command)))
    for name in (LAUNCHER, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return commands


def test_without_a_launcher_nothing_happens(started):
    hand_over(["stages/train.py"])
    assert started == []


def test_the_launcher_gets_the_command(started, monkeypatch):
    monkeypatch.setenv(LAUNCHER, "torchrun --nproc-per-node 2 --log-dir 'my logs'")
    hand_over(["stages/train.py"])
    words = ["torchrun", "--nproc-per-node", "2", "--log-dir", "my logs", "stages/train.py"]
    assert started == [("torchrun", words)]


def test_the_processes_that_it_started_do_not_start_others(started, monkeypatch):
    monkeypatch.setenv(LAUNCHER, "torchrun --nproc-per-node 2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    hand_over(["stages/train.py"])
    assert started == []


def test_a_launcher_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(LAUNCHER, "torchrum --nproc-per-node 2")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"torchrum cannot be started .*give for example 'torchrun"):
        hand_over(["stages/train.py"])
