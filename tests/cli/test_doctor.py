"""The checks of `knee-siglip doctor`, each in a state that it must tell apart."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from knee_siglip.cli import doctor
from knee_siglip.params.sections import SMALL, TrackingParams


def test_old_python_is_broken_and_a_new_one_ready() -> None:
    assert doctor.check_python((3, 10, 4)).state == "broken"
    assert doctor.check_python((3, 11, 0)).state == "ready"


@pytest.fixture
def newcomer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment of a user with an empty home folder and no settings; to set more in."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_COUNT", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def folder_with_programs(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).touch(mode=0o755)
    return str(folder)


def closed_address() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_environment_on_path_is_ready(newcomer: pytest.MonkeyPatch) -> None:
    newcomer.setenv("PATH", str(Path(sys.executable).parent))
    assert doctor.check_environment().state == "ready"


def test_another_environment_on_path_is_noticed(newcomer: pytest.MonkeyPatch, tmp_path: Path) -> None:
    newcomer.setenv("PATH", folder_with_programs(tmp_path / "other", "dvc", "python"))
    assert "activate" in doctor.check_environment().advice


def test_no_environment_on_path_is_noticed(newcomer: pytest.MonkeyPatch, tmp_path: Path) -> None:
    newcomer.setenv("PATH", folder_with_programs(tmp_path / "empty"))
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


def test_hub_is_not_contacted_unless_asked(newcomer: pytest.MonkeyPatch) -> None:
    newcomer.setenv("HF_ENDPOINT", closed_address())
    assert doctor.check_hub(online=False).state == "ready"
    check = doctor.check_hub(online=True)
    assert (check.state, "does not answer" in check.detail) == ("note", True)


def test_mlflow_server_is_contacted_only_online(newcomer: pytest.MonkeyPatch) -> None:
    newcomer.setenv("MLFLOW_TRACKING_URI", closed_address())
    assert doctor.check_mlflow("auto", online=False).state == "ready"
    assert doctor.check_mlflow("auto", online=True).state == "note"
    assert "off" in doctor.check_mlflow("none", online=True).detail
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert doctor.check_mlflow(f"http://127.0.0.1:{server.getsockname()[1]}", online=True).state == "ready"


def test_mlflow_without_a_server_writes_a_database(newcomer: pytest.MonkeyPatch) -> None:
    assert "SQLite" in doctor.check_mlflow("auto", online=True).detail


def test_doctor_says_what_leaves_the_machine(newcomer: pytest.MonkeyPatch) -> None:
    said = doctor.check_sent(TrackingParams()).detail
    assert "MLflow (on this machine): figures, params, tables, pictures and texts of single patients" in said
    assert "W&B (wandb/, for its server): figures and params" in said
    remote = TrackingParams(mlflow="https://me:secret@mlflow.org", wandb="none", send="metrics_and_reports")
    said = doctor.check_sent(remote).detail
    assert said == "MLflow (https://***@mlflow.org): figures, params, tables and charts of groups"
    assert "secret" not in doctor.check_mlflow(remote.mlflow, online=False).detail
    newcomer.setenv("WANDB_MODE", "disabled")
    assert doctor.check_sent(TrackingParams(mlflow="none")).detail == "nothing"


def test_wandb_online_wants_a_key(newcomer: pytest.MonkeyPatch) -> None:
    assert doctor.check_wandb("offline").state == "ready"
    assert doctor.check_wandb("online").state == "note"
    newcomer.setenv("WANDB_API_KEY", "x" * 40)
    assert doctor.check_wandb("online").state == "ready"


@pytest.mark.parametrize(("free", "state"), [(10**12, "ready"), (10**9, "note")])
def test_disk_that_is_nearly_full_is_noticed(
    newcomer: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    newcomer.setattr(shutil, "disk_usage", lambda _folder: usage)
    assert doctor.check_disk("disk", tmp_path / "not" / "yet").state == state


def test_disk_that_cannot_be_written_is_broken(newcomer: pytest.MonkeyPatch, tmp_path: Path) -> None:
    newcomer.setattr(os, "access", lambda _path, _mode: False)  # root may write everywhere
    assert doctor.check_disk("disk", tmp_path).state == "broken"


def test_user_id_without_a_name_is_noticed(newcomer: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        newcomer.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    newcomer.setattr("pwd.getpwuid", unknown)
    check = doctor.check_user()
    assert check.state == "broken"
    assert "export USER=me" in check.advice
    newcomer.setenv("USER", "me")
    assert doctor.check_user().state == "ready"


def test_missing_git_identity_is_noticed(newcomer: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "config", "--global", "user.name", "A"], check=True)
    check = doctor.check_git_identity()
    assert (check.state, check.detail) == ("note", "user.email not set")
    subprocess.run(["git", "config", "--global", "user.email", "a@example.org"], check=True)
    assert doctor.check_git_identity().state == "ready"


def test_whole_examination_of_this_environment_is_not_broken() -> None:
    checks = doctor.examine()
    assert [check for check in checks if check.state == "broken"] == []
    assert all(check.advice for check in checks if check.state == "note")
