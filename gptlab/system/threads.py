"""Decide how many threads compute on a CPU, and how they wait for each other.

Threads that compute an operation together wait at its end for the last of them. By default they spin for some
milliseconds first. Beside other processes the one that they wait for may not run at all meanwhile, and the spinning
takes its core: a step takes ten times as long. Threads that soon sleep cost nothing where they are alone. The libraries
read the environment when torch is imported. Nothing in this module imports torch.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

SPINS = 4000  # turns of GNU's OpenMP, some 60 microseconds, before a waiting thread sleeps
MILLISECONDS = 0  # that LLVM's and Intel's OpenMP spin
FLOPS = 5e8  # of a pass from which a second thread pays, a third from twice as many, and so on
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # who sets one of them has decided


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the threads of torch, before it is imported, sleep soon, and be no more than the cores that may be used."""
    if not any(name in environment for name in WAITING):
        environment.update(GOMP_SPINCOUNT=str(SPINS), KMP_BLOCKTIME=str(MILLISECONDS))
    if "OMP_NUM_THREADS" not in environment and cores() < affinity():
        environment["OMP_NUM_THREADS"] = str(cores())


def worth(flops: float, most: int) -> int:
    """Return how many threads, of at most `most`, pay for a pass of so many floating-point operations."""
    return max(1, min(most, 1 + int(flops // FLOPS)))


def affinity() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may use, by its affinity and, rounded up, by the quota of its containers.

    Args:
        root: where Linux shows control groups.
        own: the file that names those of this process.
    """
    quotas = [affinity(), *(-(-quota // period) for quota, period in _quotas(root, own))]
    return max(1, min(quotas))


def _quotas(root: Path, own: Path) -> list[tuple[int, int]]:
    """Return the quotas of CPU time of this process and the periods that they are for, in microseconds."""
    found = []
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and "cpu" not in kinds.split(","):
                continue
            base = root / kinds if kinds else root  # version 1 has a tree for each kind
            group = base / place.lstrip("/")
            above = [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
            found += [quota for folder in above if (quota := _quota(folder)) is not None]
    return found


def _quota(folder: Path) -> tuple[int, int] | None:
    """Return the quota of one control group and its period; None if it has none."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    with suppress(OSError, ValueError):
        quota_, period_ = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return (quota_, period_) if quota_ > 0 else None
    return None


def in_use() -> int:
    """Return how many threads torch computes with; where it is not imported, as many as it would.

    Where another thread is importing it, the module is there, and what is in it may not be.
    """
    if (count := getattr(sys.modules.get("torch"), "get_num_threads", None)) is not None:
        return int(count())
    return _wanted(os.environ.get("OMP_NUM_THREADS", ""))


@functools.cache
def _wanted(setting: str) -> int:
    """Return the threads that OMP_NUM_THREADS asks for; counted once, since `cores` takes as long as a small pass."""
    first = setting.partition(",")[0]
    return int(first) if first.isdecimal() and int(first) else cores()
