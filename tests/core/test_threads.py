import os
import platform
import subprocess
import sys

import pytest

from knee_siglip.core import threads

SHOWN = "import knee_siglip, os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"


def waiting(**environment: str) -> list[str]:
    """Policy and spin count that a fresh interpreter has set once the package is imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SHOWN]
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_threads_soon_sleep_while_they_wait() -> None:
    assert waiting() == ["passive", threads.SPIN_COUNT]


def test_the_users_setting_wins() -> None:
    assert waiting(OMP_WAIT_POLICY="active") == ["active", "None"]
    assert waiting(GOMP_SPINCOUNT="7") == ["passive", "7"]


def test_the_policy_is_set_before_torch_is_loaded() -> None:
    check = "import sys, knee_siglip; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(("content", "cores"), [("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8)])
def test_a_containers_quota_bounds_cores_and_threads(monkeypatch, tmp_path, content, cores) -> None:
    monkeypatch.setattr(threads, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "environ", {})
    threads.CPU_QUOTA.write_text(content)
    threads.set_up_threads()
    assert threads.available_cores() == cores
    assert os.environ.get("OMP_NUM_THREADS") == (None if cores == 8 else str(cores))


def test_without_a_quota_file_every_core_counts(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(threads, "CPU_QUOTA", tmp_path / "missing")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert threads.available_cores() == 3


MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("1048576\n", 2**20), ("max\n", MACHINE), (None, MACHINE)],
    ids=["limit", "none", "no file"],
)
def test_a_containers_limit_bounds_the_memory(monkeypatch, tmp_path, content, expected) -> None:
    monkeypatch.setattr(threads, "MEMORY_LIMIT", tmp_path / "memory.max")
    if content is not None:
        threads.MEMORY_LIMIT.write_text(content)
    assert threads.available_memory() == expected


FAULTS = """
import resource
from knee_siglip.core.threads import keep_freed_memory
keep_freed_memory()
for number in range(20):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [b"1" * 2**20 for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_of_freed_arrays_is_used_again_unless_the_user_has_set_it() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def page_faults(**settings: str) -> int:
        command = [sys.executable, "-c", FAULTS]
        return int(subprocess.run(command, env=environment | settings, capture_output=True, check=True).stdout)

    pages = 8 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert page_faults() < pages
    assert page_faults(MALLOC_TRIM_THRESHOLD_="131072") > 10 * pages
