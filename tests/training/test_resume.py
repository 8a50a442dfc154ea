"""The folder from which a killed training goes on."""

import fcntl
import os
from pathlib import Path

import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.params.files import parse_params
from knee_siglip.training import resume
from knee_siglip.training.resume import StateSaver, fingerprint, open_run


@pytest.fixture
def keeper(tmp_path):
    (tmp_path / "run").mkdir()
    return StateSaver(tmp_path / "run", minutes=5)


def state(step):
    return {"step": step, "weights": torch.full((3000,), float(step))}


def files(keeper, ending):
    return sorted(path.name for path in keeper.folder.glob(f"*{ending}"))


def test_the_newest_state_comes_back_and_two_are_kept(keeper):
    assert keeper.load() is None
    for step in (5, 10, 15):
        assert keeper.save(state(step), step)
    loaded = keeper.load()
    assert loaded["step"] == 15
    assert torch.equal(loaded["weights"], state(15)["weights"])
    assert files(keeper, ".state") == ["step-000000010.state", "step-000000015.state"]
    assert len(files(keeper, "")) == 4


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "no digest", "not there"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(keeper, damage, caplog):
    for step in (5, 10):
        keeper.save(state(step), step)
    file = keeper.folder / "step-000000010.state"
    data = bytearray(file.read_bytes())
    if damage == "flipped bit":
        data[len(data) // 2] ^= 4
    if damage in ("no digest", "not there"):
        file.with_suffix(".sha256" if damage == "no digest" else ".state").unlink()
    else:
        file.write_bytes(data[: {"cut short": len(data) // 2, "empty": 0}.get(damage, len(data))])
    assert keeper.load()["step"] == 5
    assert ("is damaged" in caplog.text) == (damage in ("flipped bit", "cut short", "empty"))


def test_with_all_states_damaged_training_begins_anew(keeper):
    keeper.save(state(5), 5)
    (keeper.folder / "step-000000005.state").write_bytes(b"")
    assert keeper.load() is None


def test_a_save_that_the_disk_refuses_costs_only_itself(keeper, monkeypatch, caplog):
    keeper.save(state(5), 5)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", refuse)
    assert not keeper.save(state(10), 10)
    assert "step 10 could not be saved, the state before it is kept" in caplog.text
    assert "No space left on device" in caplog.text
    assert keeper.load()["step"] == 5
    assert files(keeper, ".partial") == []


def test_the_best_model_is_that_of_the_state(keeper):
    """Trained on beyond the state, the model may have become better; those epochs are trained again."""
    keeper.best_model.write_text("epoch 2")
    keeper.save(state(5), 5)
    keeper.best_model.unlink()
    keeper.best_model.write_text("epoch 3")
    keeper.restore_best(5)
    assert keeper.best_model.read_text() == "epoch 2"
    keeper.restore_best(0)
    assert not keeper.best_model.exists()


def test_without_hard_links_the_best_model_is_copied(keeper, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    keeper.best_model.write_text("epoch 2")
    keeper.save(state(5), 5)
    keeper.best_model.write_text("epoch 3")
    keeper.restore_best(5)
    assert keeper.best_model.read_text() == "epoch 2"


def test_a_state_is_due_after_its_minutes(monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    keeper = StateSaver(tmp_path, minutes=2)
    now[0] += 119
    assert not keeper.is_due
    now[0] += 1
    assert keeper.is_due
    keeper.save(state(1), 1)
    assert not keeper.is_due


def test_two_trainings_of_one_fingerprint_do_not_run_at_once(tmp_path):
    with (
        open_run(tmp_path, "abc", 5),
        pytest.raises(UserError, match="another process is running this very training"),
        open_run(tmp_path, "abc", 5, wait=0.3),
    ):
        pass
    with open_run(tmp_path, "abc", 5, wait=0), open_run(tmp_path, "another", 5, wait=0):
        pass


def test_a_training_that_is_just_ending_is_waited_for(tmp_path, caplog):
    folder = tmp_path / "abc"
    folder.mkdir()
    child = os.fork()
    if not child:  # holds the lock for half a second
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "held").touch()
            resume.time.sleep(0.5)
        os._exit(0)
    while not (folder / "held").exists():
        resume.time.sleep(0.01)
    with open_run(tmp_path, "abc", 5, wait=20):
        assert "waiting up to 20 s for it to finish" in caplog.text
    os.waitpid(child, 0)


def test_what_a_killed_save_left_is_swept_away(tmp_path):
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "step-000000005.state.partial").write_bytes(b"half")
    with open_run(tmp_path, "abc", 5) as keeper:
        assert files(keeper, ".partial") == []
        assert keeper.load() is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file in its place")
    with pytest.raises(UserError, match=r"runs/abc.*KNEE_SIGLIP_STORE"), open_run(tmp_path / "runs", "abc", 5):
        pass


@pytest.fixture
def backbones(tmp_path) -> Path:
    for tower in ("vision", "text"):
        (tmp_path / "backbones" / tower).mkdir(parents=True)
        (tmp_path / "backbones" / tower / "model.safetensors").write_text(tower)
    return tmp_path / "backbones"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"image_size": 448},
        {"model": {"temperature": 0.1}},
        {"train": {"learning_rate": 0.1}},
        {"train": {"epochs": 9}},
        {"train": {"freeze": {"vision": "all"}}},
        {"train": {"augment": {"noise": 0.0}}},
    ],
)
def test_other_params_are_another_training(backbones, changes):
    assert fingerprint(parse_params({}), "data", backbones) != fingerprint(parse_params(changes), "data", backbones)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"save_every_minutes": 1.0}},
        {"train": {"save_every_steps": 3}},
        {"train": {"prefetch": 4}},
        {"tracking": {"project_name": "other"}},
        {"evaluate": {"batch_size": 32}},
        {"infer": {"batch_size": 7}},
    ],
)
def test_what_changes_no_number_is_the_same_training(backbones, changes):
    assert fingerprint(parse_params({}), "data", backbones) == fingerprint(parse_params(changes), "data", backbones)


def test_other_data_or_encoders_are_another_training(backbones):
    before = fingerprint(parse_params({}), "data", backbones)
    assert fingerprint(parse_params({}), "other data", backbones) != before
    (backbones / "text" / "model.safetensors").write_text("Text")
    assert fingerprint(parse_params({}), "data", backbones) != before
