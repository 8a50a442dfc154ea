import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import (
    atomic_file,
    atomic_folder,
    atomic_text,
    link_or_copy,
    lock,
    sha256,
    sole_writer,
    stats_below,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(path) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise KeyError


def fail_halfway_in_folder(path) -> None:
    with atomic_folder(path) as folder:
        (folder / "half").touch()
        raise KeyError


def test_a_file_appears_whole_and_alone(tmp_path):
    path = tmp_path / "new folder" / "table.csv"
    with atomic_text(path) as file:
        file.write("a\r\nü\n")
        assert not path.exists()
    assert path.read_bytes() == "a\r\nü\n".encode()
    assert names(path.parent) == ["table.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(KeyError):
        fail_halfway(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    (tmp_path / "model").write_text("old")
    program = f"""
import os
from pathlib import Path
from knee_siglip.core.files import atomic_file
with atomic_file(Path({str(tmp_path / "model")!r})) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert (tmp_path / "model").read_text() == "old"


def test_content_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        steps.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "content")
        sync(descriptor)

    def rename(source, target):
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with atomic_file(tmp_path / "model") as file:
        file.write(b"weights")
    assert steps == ["content", "name", "folder"]


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = tmp_path / "results.csv"
    with atomic_text(path) as first:
        first.write("first\n")
        first.flush()
        with atomic_text(path) as second:
            second.write("second\n")
        assert path.read_text() == "second\n"
        first.write("first\n")
    assert path.read_text() == "first\nfirst\n"
    assert names(tmp_path) == ["results.csv"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with (
        pytest.raises(UserError, match=r"cannot write .*model: No space left on device; free some space"),
        atomic_file(tmp_path / "model"),
    ):
        pass
    assert names(tmp_path) == []


def test_a_disk_that_refuses_the_cleaning_too_is_still_named_by_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("fsync", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"cannot write .*/map\.jpg: Read-only file system; make the"):  # noqa: SIM117
        with atomic_file(tmp_path / "map.jpg"):
            pass


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "images"
    with atomic_folder(target) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError):
        fail_halfway_in_folder(target)
    assert names(target) == ["old"]
    with atomic_folder(target) as folder:
        (folder / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["images"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_linked_file_takes_the_place_of_what_was_there(tmp_path, times):
    """The second link finds both names on one file, where rename does nothing."""
    (tmp_path / "best").write_text("new")
    (tmp_path / "model").write_text("old")
    for _ in range(times):
        link_or_copy(tmp_path / "best", tmp_path / "model")
    assert (tmp_path / "best").samefile(tmp_path / "model")
    assert names(tmp_path) == ["best", "model"]


def test_a_lock_keeps_others_out_and_is_free_afterwards(tmp_path):
    with (
        lock(tmp_path / ".lock", "filling the store"),
        pytest.raises(UserError, match=r"another process is filling the store \(its lock: .*\.lock\)"),
        lock(tmp_path / ".lock", "filling the store", wait=0),
    ):
        pass
    with lock(tmp_path / ".lock", "filling the store", wait=0):
        pass


def test_a_lock_that_went_with_its_folder_is_taken_anew(tmp_path, monkeypatch):
    """Holding a lock file that is gone keeps nobody out: the next process locks its successor."""
    path = tmp_path / "run" / ".lock"
    real, removed = fcntl.flock, []

    def flock(descriptor, operation):
        real(descriptor, operation)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(path, "training"), pytest.raises(UserError, match="another process"), lock(path, "training", wait=0):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, number):
    """Lustre mounted with noflock, NFS without its lock service."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(UserError, match=r"has no file locks, so use a folder on another disk"),
        lock(tmp_path / "l", "x"),
    ):
        pass


def test_a_sole_writer_keeps_others_out_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    with sole_writer(path):
        with pytest.raises(UserError, match=r"another process is writing .*table\.csv"), sole_writer(path):
            pass
        with sole_writer(tmp_path / "other.csv"):
            monkeypatch.setenv("RANK", "1")  # of the same torchrun
            with sole_writer(path):
                pass
    assert names(tmp_path) == []


def test_a_sole_writer_does_without_locks_and_makes_no_folder(tmp_path, monkeypatch):
    with sole_writer(tmp_path / "none" / "table.csv"):
        assert names(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    for odd in (".", "..", "/"):  # which the command refuses
        with sole_writer(Path(odd)):
            pass

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with sole_writer(tmp_path / "table.csv"):
            pass
    (tmp_path / ".table.csv.lock").mkdir()  # nothing can be opened there
    with sole_writer(tmp_path / "table.csv"):
        pass


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "store").touch()
    with pytest.raises(UserError, match=r"cannot write .*store: .*KNEE_SIGLIP_STORE"), lock(tmp_path / "store/l", "x"):
        pass


def test_a_file_that_goes_while_a_folder_is_looked_at_is_left_out(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").write_bytes(b"four")
    (tmp_path / "run" / "replaced").symlink_to("gone")
    assert [stat.st_size for stat in stats_below(tmp_path)] == [4]
    assert stats_below(tmp_path / "none") == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"bytes").hexdigest()
