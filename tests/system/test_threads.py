"""As many threads as there are cores to use, that sleep soon where others have work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gptlab.system import threads
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def sixty_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "affinity", lambda: 64)


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({}, "0::/\n", 64),
        ({"cpu.max": "max 100000"}, "0::/\n", 64),
        ({"cpu.max": "200000 100000"}, "0::/\n", 2),
        ({"cpu.max": "150000 100000"}, "0::/\n", 2),
        ({"cpu.max": "50000 100000"}, "0::/\n", 1),
        ({"cpu.max": "9900000 100000"}, "0::/\n", 64),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b\n", 3),  # the limit of a group above
        ({"cpu.max": "400000 100000"}, "0::/of/the/host\n", 4),  # a container sees its own group as the root
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "500000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/x\n",
            5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", 64),
        ({"cpu.max": "broken"}, "0::/\n", 64),
        ({"cpu.max": "200000 100000"}, "nonsense\n", 64),
        ({"cpu.max": "200000 100000"}, None, 64),  # not Linux
    ],
)
def test_a_containers_quota_counts_and_not_the_machines_cores(
    tmp_path: Path, files: dict[str, str], own: str | None, cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert threads.cores(tmp_path / "root", tmp_path / "own") == cores


def test_waiting_threads_sleep_unless_the_user_has_decided() -> None:
    environment: dict[str, str] = {}
    threads.prepare(environment)
    assert environment["GOMP_SPINCOUNT"] == str(threads.SPINS)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        theirs = {name: "theirs"}
        threads.prepare(theirs)
        assert theirs == {name: "theirs"}


def test_threads_are_no_more_than_a_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 3)
    environment = {"OMP_WAIT_POLICY": "active"}
    threads.prepare(environment)
    assert environment["OMP_NUM_THREADS"] == "3"
    environment["OMP_NUM_THREADS"] = "7"
    threads.prepare(environment)
    assert environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.setattr(threads, "cores", lambda: 64)
    environment = {}
    threads.prepare(environment)
    assert "OMP_NUM_THREADS" not in environment  # torch takes the cores itself, without the second thread of each


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP says what it has read")
@pytest.mark.parametrize(
    "verb", ["train", *(pytest.param(each, marks=pytest.mark.slow) for each in ("generate", "evaluate"))]
)
def test_torch_reads_what_was_prepared(tmp_path: Path, verb: str) -> None:
    words = ["init_from=none.ckpt"] if verb == "train" else ["none.ckpt"]
    environment = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"gptlab.{verb}", *words]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "none.ckpt" in result.stderr
    assert f"GOMP_SPINCOUNT = '{threads.SPINS}'" in result.stderr


def test_torch_that_another_thread_is_importing_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is there from the beginning of the import on, empty."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert threads.in_use() == 3
    monkeypatch.delitem(sys.modules, "torch")
    assert threads.in_use() == 3
