"""The folder from which a killed training goes on."""

import fcntl
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.params.files import parse_params
from knee_siglip.training import resume
from knee_siglip.training.resume import StateSaver, fingerprint, open_run, require_space


@pytest.fixture
def keeper(tmp_path):
    (tmp_path / "run").mkdir()
    return StateSaver(tmp_path / "run", minutes=5)


def state(step):
    return {"step": step, "weights": torch.full((3000,), float(step))}


def newest(keeper):
    """The newest state that can be used, None if there is none."""
    return next(keeper.undamaged(), None)


def save(keeper, step):
    assert keeper.save(state(step), step, wait=True)


def files(keeper, ending):
    return sorted(path.name for path in keeper.folder.glob(f"*{ending}"))


def test_the_newest_state_comes_back_and_two_are_kept(keeper):
    assert newest(keeper) is None
    for step in (5, 10, 15):
        save(keeper, step)
    loaded = newest(keeper)
    assert loaded["step"] == 15
    assert torch.equal(loaded["weights"], state(15)["weights"])
    assert files(keeper, ".state") == ["step-000000010.state", "step-000000015.state"]
    assert len(files(keeper, "")) == 4


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "no digest", "not there"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(keeper, damage, caplog):
    for step in (5, 10):
        save(keeper, step)
    file = keeper.folder / "step-000000010.state"
    data = bytearray(file.read_bytes())
    if damage == "flipped bit":
        data[len(data) // 2] ^= 4
    if damage in ("no digest", "not there"):
        file.with_suffix(".sha256" if damage == "no digest" else ".state").unlink()
    else:
        file.write_bytes(data[: {"cut short": len(data) // 2, "empty": 0}.get(damage, len(data))])
    assert newest(keeper)["step"] == 5
    assert ("is damaged" in caplog.text) == (damage in ("flipped bit", "cut short", "empty"))


@pytest.mark.parametrize("damage", ["flipped bit", "empty", "not there"])
def test_a_damaged_best_model_makes_its_state_unusable(keeper, damage, caplog):
    for step in (5, 10):
        keeper.best_model.unlink(missing_ok=True)
        keeper.best_model.write_bytes(b"best model up to %d" % step)
        save(keeper, step)
    file = keeper.folder / "step-000000010.best"
    if damage == "not there":
        file.unlink()
    else:
        file.write_bytes({"flipped bit": b"best model up to 11", "empty": b""}[damage])
    assert newest(keeper)["step"] == 5
    assert "step-000000010.state is damaged and is not used" in caplog.text
    keeper.restore_best(5)
    assert keeper.best_model.read_bytes() == b"best model up to 5"


def test_the_digests_are_those_that_sha256sum_checks(keeper):
    keeper.best_model.write_bytes(b"best")
    save(keeper, 5)
    check = ["sha256sum", "--check", "--strict", "step-000000005.sha256"]
    assert subprocess.run(check, cwd=keeper.folder, capture_output=True, check=True).stdout.count(b"OK") == 2


def with_digest(file, content):
    """Put the content in the file's place, with the digest that belongs to it."""
    file.write_bytes(content)
    file.with_suffix(".sha256").write_text(f"{resume.sha256(file)}  {file.name}\n")


def test_a_digest_that_is_no_text_and_other_content_with_its_own_digest_are_left_out(keeper, tmp_path, caplog):
    for step in (5, 10):
        save(keeper, step)
    file = keeper.folder / "step-000000010.state"
    file.with_suffix(".sha256").write_bytes(b"\xe9\xff")
    assert newest(keeper)["step"] == 5
    with_digest(file, b"not what torch writes")
    assert newest(keeper)["step"] == 5
    assert "is no saved state" in caplog.text
    (tmp_path / "other").mkdir()
    other = StateSaver(tmp_path / "other", minutes=5)
    save(other, 10)
    with_digest(file, (other.folder / file.name).read_bytes())
    assert newest(keeper)["step"] == 5
    assert "belongs to another training" in caplog.text


def test_a_later_state_that_cannot_be_used_does_not_push_out_new_ones(keeper):
    save(keeper, 100)
    with_digest(keeper.folder / "step-000000100.state", b"not what torch writes")
    for step in (5, 10, 15):
        save(keeper, step)
    assert newest(keeper)["step"] == 15
    assert files(keeper, ".state") == [f"step-{step:09d}.state" for step in (10, 15, 100)]


def test_training_goes_on_while_a_state_is_written_and_changes_nothing_of_it(keeper, monkeypatch):
    gate, write = threading.Semaphore(0), resume.torch.save
    monkeypatch.setattr(resume.torch, "save", lambda *args: gate.acquire(timeout=20) and write(*args))
    live = {"step": 5, "weights": torch.zeros(3), "epochs": [1]}
    assert keeper.save(live, 5)
    live["weights"] += 1
    live["epochs"].append(2)
    assert newest(keeper) is None
    gate.release()
    live["step"] = 10
    assert keeper.save(live, 10)  # waits for the first one
    assert newest(keeper)["step"] == 5
    assert newest(keeper)["epochs"] == [1]
    assert not newest(keeper)["weights"].any()
    gate.release()
    assert keeper.finish()
    assert newest(keeper)["epochs"] == [1, 2]


def test_a_training_that_ends_has_written_its_state(tmp_path):
    with open_run(tmp_path, "abc", 5) as keeper:
        keeper.save(state(5), 5)
    assert newest(keeper)["step"] == 5


def test_a_training_knows_whether_it_was_begun_before(tmp_path):
    for expected in (False, True):
        with open_run(tmp_path, "abc", 5) as keeper:
            assert (keeper.begun is not None) == expected
    keeper.remove()
    with open_run(tmp_path, "abc", 5) as keeper:
        assert keeper.begun is None


def test_with_all_states_damaged_training_begins_anew(keeper):
    save(keeper, 5)
    (keeper.folder / "step-000000005.state").write_bytes(b"")
    assert newest(keeper) is None


def test_a_save_that_the_disk_refuses_costs_only_itself(keeper, monkeypatch, caplog):
    save(keeper, 5)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", refuse)
    assert keeper.save(state(10), 10)
    assert not keeper.finish()
    assert "step 10 could not be saved, the state before it is kept" in caplog.text
    assert "No space left on device" in caplog.text
    assert newest(keeper)["step"] == 5
    assert files(keeper, ".partial") == []


def test_the_best_model_is_that_of_the_state(keeper):
    """Trained on beyond the state, the model may have become better; those epochs are trained again."""
    keeper.best_model.write_text("epoch 2")
    save(keeper, 5)
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
    save(keeper, 5)
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
    save(keeper, 1)
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
        assert newest(keeper) is None


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


def test_another_start_under_the_same_name_is_another_training(backbones, tmp_path):
    start = tmp_path / "start.pt"
    params = parse_params({"train": {"init_from": str(start)}})
    found = set()
    for content in ("first", "second"):
        start.write_text(content)
        found.add(fingerprint(params, "data", backbones))
    assert len(found) == 2


def test_other_data_or_encoders_are_another_training(backbones):
    before = fingerprint(parse_params({}), "data", backbones)
    assert fingerprint(parse_params({}), "other data", backbones) != before
    (backbones / "text" / "model.safetensors").write_text("Text")
    assert fingerprint(parse_params({}), "data", backbones) != before


@pytest.mark.parametrize(("with_average", "needed"), [(False, 4), (True, 5)])
def test_a_disk_too_small_for_the_training_is_named_before_it(tmp_path, monkeypatch, with_average, needed):
    model = torch.nn.Linear(300, 300)  # 0.36 MB: three states of three or four times that, and three best models
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=10**6))
    with pytest.raises(UserError, match=rf"runs/x needs {needed} MB, 1 MB are free; free some"):
        require_space(tmp_path / "runs/x", tmp_path / "models", model, with_average)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=10**7))
    require_space(tmp_path / "runs/x", tmp_path / "models", model, with_average)


def test_what_is_saved_already_needs_no_room(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=10**6))
    needed = (tmp_path, tmp_path / "models", torch.nn.Linear(300, 300), False)
    with pytest.raises(UserError, match="needs 4 MB"):
        require_space(*needed)
    (tmp_path / "step.state").write_bytes(bytes(5 * 10**6))
    require_space(*needed)
