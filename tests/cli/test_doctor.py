"""The checks of `knee-siglip doctor`, each in a state that it must tell apart."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from knee_siglip.cli import doctor
from knee_siglip.params.sections import SMALL


def test_old_python_is_broken_and_a_new_one_ready() -> None:
    assert doctor.check_python((3, 10, 4)).state == "broken"
    assert doctor.check_python((3, 11, 0)).state == "ready"


def test_environment_that_is_not_on_path_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Path(doctor.sys.executable).parent
    monkeypatch.setattr(shutil, "which", lambda name: str(here / name))
    assert doctor.check_environment().state == "ready"
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name))
    assert "activate" in doctor.check_environment().advice
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = doctor.check_environment()
    assert (check.state, check.detail) == ("note", "dvc and python not on PATH")


def test_wrong_params_are_broken_with_their_sentence(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert doctor.check_params(path)[1].state == "note"
    path.write_text("train: {epochs: 3}\n")
    params, check = doctor.check_params(path)
    assert (params.train.epochs, check.state) == (3, "ready")
    path.write_text("train: {epoch: 3}\n")
    check = doctor.check_params(path)[1]
    assert check.state == "broken"
    assert "train.epochs" in check.detail


def test_encoder_is_ready_when_it_is_on_this_machine(tmp_path: Path) -> None:
    assert doctor.check_encoder("vision", SMALL, "").state == "ready"
    assert doctor.check_encoder("vision", str(tmp_path), "").state == "ready"
    assert "model.vision_revision" in doctor.check_encoder("vision", "owner/name", "").advice
    check = doctor.check_encoder("text", "owner/no-such-model", "0" * 40)
    assert (check.state, "not on this machine" in check.detail) == ("note", True)


def test_hub_is_not_contacted_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    assert doctor.check_hub(online=False).state == "ready"
    check = doctor.check_hub(online=True)
    assert (check.state, "no network here" in check.detail) == ("note", True)


def test_mlflow_server_is_contacted_only_online(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.check_mlflow(f"http://127.0.0.1:{port}", online=True).state == "ready"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    assert doctor.check_mlflow("auto", online=False).state == "ready"
    assert doctor.check_mlflow("auto", online=True).state == "note"
    assert "off" in doctor.check_mlflow("none", online=True).detail
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "SQLite" in doctor.check_mlflow("auto", online=True).detail


def test_wandb_online_wants_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.check_wandb("offline").state == "ready"
    assert doctor.check_wandb("online").state == "note"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert doctor.check_wandb("online").state == "ready"


def test_disk_that_is_nearly_full_or_not_writable_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    assert doctor.check_disk("disk", tmp_path / "not" / "yet").state == "ready"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert doctor.check_disk("disk", tmp_path).state == "note"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_disk("disk", tmp_path).state == "broken"


def test_missing_git_identity_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_COUNT"):
        monkeypatch.delenv(name, raising=False)
    subprocess.run(["git", "config", "--global", "user.name", "A"], check=True)
    check = doctor.check_git_identity()
    assert (check.state, check.detail) == ("note", "user.email not set")
    subprocess.run(["git", "config", "--global", "user.email", "a@example.org"], check=True)
    assert doctor.check_git_identity().state == "ready"


def test_whole_examination_of_this_environment_is_not_broken() -> None:
    checks = doctor.examine()
    assert [check for check in checks if check.state == "broken"] == []
    assert all(check.advice for check in checks if check.state == "note")
