"""What ends a stage or a command is one sentence and an exit code."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core.errors import REFUSALS, UsageError
from knee_siglip.core.running import run_stage


@pytest.fixture(autouse=True)
def umask_of_before() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_stage(main)
    return exit_info.value.code, capsys.readouterr().err


@pytest.mark.parametrize("number", REFUSALS)
def test_a_refusal_of_the_disk_names_the_file_and_what_to_do(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(OSError(number, os.strerror(number), "models/best_model.pt"), capsys)
    assert code == 1
    assert shown.startswith(f"error: models/best_model.pt: {os.strerror(number)}; ")
    assert REFUSALS[number] in shown
    assert shown.count("\n") == 1


WRAPPED = [
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError("2170880 requested and 8064 written"),
    sqlite3.OperationalError("database or disk is full"),
    OSError(errno.ENOSPC, "Error writing bytes to file"),
]


def test_full_memory_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MemoryError("Unable to allocate 9 GiB for an array"), capsys) == (
        1,
        f"error: Cannot allocate memory; {REFUSALS[errno.ENOMEM]}, then run the same command again\n",
    )


@pytest.mark.parametrize("error", WRAPPED, ids=["rust", "numpy", "sqlite", "arrow"])
def test_libraries_tell_a_full_disk_in_their_own_ways(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error, capsys) == (
        1,
        "error: No space left on device; free some space, then run the same command again\n",
    )


def test_a_name_that_is_not_utf8_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"b\xe9d/knee.png")
    with pytest.raises(UnicodeEncodeError) as raised:
        pd.Series([name], dtype="str")
    code, shown = run(raised.value, capsys)
    assert code == 1
    assert shown.startswith("error: b\\udce9d/knee.png: the name is not UTF-8; rename the file or folder")


def test_a_refusal_behind_another_error_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("the writer failed")
    error.__cause__ = OSError(errno.EROFS, "", "reports")
    assert run(error, capsys)[1].startswith("error: reports: Read-only file system; ")


def test_a_users_error_keeps_its_code_and_ctrl_c_has_the_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(UsageError("no such flag"), capsys) == (2, "error: no such flag\n")
    code, shown = run(KeyboardInterrupt(), capsys)
    assert code == 130
    assert shown.startswith("error: interrupted")


def test_ctrl_c_that_meets_python_in_a_callback_is_not_lost() -> None:
    script = """
import gc, signal, time
from knee_siglip.core.running import run_stage

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it

def collected(phase, info):
    gc.callbacks.clear()
    raise KeyboardInterrupt

def main():
    gc.callbacks.append(collected)
    gc.collect()
    time.sleep(60)

run_stage(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr.splitlines()) == (
        130,
        ["error: interrupted; no file is half-written, so run the same command again"],
    )


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "", "x"), KeyError("x")])
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_stage(main)


@pytest.mark.parametrize(("mask", "mode"), [("", 0o600), ("027", 0o640), ("000", 0o666)])
def test_new_files_are_private(mask: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mask:
        monkeypatch.setenv("KNEE_SIGLIP_UMASK", mask)
    run_stage((tmp_path / "pixels").touch)
    assert (tmp_path / "pixels").stat().st_mode & 0o777 == mode


def test_a_mask_that_is_no_number_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEE_SIGLIP_UMASK", "group")
    code, shown = run(KeyError("not reached"), capsys)
    assert code == 2
    assert "KNEE_SIGLIP_UMASK is 'group'" in shown


PARENT = """
import os, subprocess, sys, time
stage = '''
import time
from knee_siglip.core.running import run_stage
run_stage(lambda: (print("on", flush=True), time.sleep(99)))
'''
started = subprocess.Popen([sys.executable, "-c", stage])
print(started.pid, flush=True)
time.sleep(99)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's death is Linux's")
def test_a_stage_ends_with_the_dvc_that_started_it() -> None:
    env = os.environ | {"DVC_STAGE": "evaluate", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    dvc = subprocess.Popen([sys.executable, "-c", PARENT], env=env, stdout=subprocess.PIPE, text=True)
    assert dvc.stdout is not None
    stage = int(dvc.stdout.readline())
    assert dvc.stdout.readline() == "on\n"
    dvc.kill()
    dvc.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{stage}/cmdline").exists() and Path(f"/proc/{stage}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the stage outlived its dvc"
        time.sleep(0.05)


STAGE = """
from knee_siglip.core.running import run_stage
run_stage(lambda: print("on", flush=True) or input())
"""


def test_a_second_process_of_a_stage_waits_for_the_first_and_another_stage_does_not(tmp_path: Path) -> None:
    """Out and error are one stream, so that their order is known."""
    (tmp_path / ".dvc").mkdir()

    def start(stage: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = os.environ | {"DVC_STAGE": stage, "DVC_ROOT": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", STAGE], cwd=tmp_path, env=env, **pipes)  # type: ignore[call-overload]

    def hear(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    first = start("train")
    assert hear(first) == "on\n"
    second, other = start("train"), start("evaluate")
    assert "another process is running the stage train; waiting up to 60 s" in hear(second)
    assert hear(other) == "on\n"
    first.communicate("\n")
    assert hear(second) == "on\n"
    for process in (second, other):
        process.communicate("\n")
    assert [process.returncode for process in (first, second, other)] == [0, 0, 0]


@pytest.mark.parametrize("stage", ["sample", "report", "params"])
def test_a_stage_that_may_write_nothing_says_so(stage: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    (tmp_path / "tasks").symlink_to(root / "tasks")
    (tmp_path / "data").mkdir()
    shutil.copy(root / "data/no_external.csv", tmp_path / "data")
    (tmp_path / "reports/validation").mkdir(parents=True)
    (tmp_path / "reports/evaluation").mkdir(parents=True)
    (tmp_path / "reports/evaluation/metrics.json").write_text('{"test": {"loss": 1.0}}')
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    limited = f"{limit}; runpy.run_path({str(root / 'stages' / f'{stage}.py')!r}, run_name='__main__')"
    env = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", limited], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".partial"]
