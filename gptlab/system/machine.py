"""This machine without its accelerator: cores, memory, processor. Nothing here loads torch."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """The largest resident memory that this process has had; None where the system does not tell."""
    with suppress(OSError, StopIteration):  # Linux counts into ru_maxrss what the process that started this one had
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_name() -> str:
    """The name of this machine's processor, as its maker has it where the system tells."""
    known = (value for key, value in _processor() if key == "model name")
    return next(known, None) or platform.processor() or platform.machine()


def processor_features() -> str:
    """What the processor can do; the machine's name where the system does not tell."""
    return next((f"{key}: {value}" for key, value in _processor() if key in ("flags", "Features")), platform.node())


def _processor() -> list[tuple[str, str]]:
    """What Linux says of the processor: (key, value) of each line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES chooses the GPUs that this process may use; asked without torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: by default it gives large tensors back at once, and each new one is slow at first.

    Elsewhere than on Linux with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max, gigabytes = -1, -4, (1 << 31) - 1
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, gigabytes)


def rows_that_fit_caches(rows: int, block_size: int) -> int:
    """How many of `rows` sequences a CPU best computes at once: what stays in its caches, about 1024 tokens."""
    return max(size for size in range(1, rows + 1) if rows % size == 0 and (size * block_size <= 1024 or size == 1))
