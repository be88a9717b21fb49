"""This machine without its accelerator: cores, memory, processor. Nothing in this module imports torch."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and in Windows


def resident_bytes(process: int | None = None) -> int | None:
    """Return the resident memory of a process, by default of this one; None if the system is not Linux."""
    return _status_bytes("VmRSS", process)


def _status_bytes(field: str, process: int | None = None) -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
    return None


def peak_memory_bytes() -> int | None:
    """Return the largest resident memory that this process has had; None if the system does not report it."""
    if (peak := _status_bytes("VmHWM")) is not None:  # Linux's ru_maxrss includes the peak of the parent process
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_name() -> str:
    """Return the name of this machine's processor, by its maker if the system reports it."""
    known = (value for key, value in _processor() if key == "model name")
    return next(known, None) or platform.processor() or platform.machine()


def processor_features() -> str:
    """Return the processor's feature flags; the machine's name if the system does not report them."""
    return next((f"{key}: {value}" for key, value in _processor() if key in ("flags", "Features")), platform.node())


def _processor() -> list[tuple[str, str]]:
    """Return (key, value) of each line of Linux's description of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names for CUDA_VISIBLE_DEVICES, without importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def may_have_accelerator() -> bool:
    """Return whether torch might find another device than the CPU: on Linux, if there is a driver of one."""
    return sys.platform != "linux" or any(Path(driver).exists() for driver in DRIVERS)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: by default it returns large tensors to the system, and new ones are slow at first.

    Without Linux and glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max, gigabytes = -1, -4, (1 << 31) - 1
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, gigabytes)


def rows_that_fit_caches(rows: int, block_size: int) -> int:
    """Return how many of `rows` sequences a CPU best computes at once: as many as fit its caches, about 1024 tokens."""
    return max(size for size in range(1, rows + 1) if rows % size == 0 and (size * block_size <= 1024 or size == 1))
