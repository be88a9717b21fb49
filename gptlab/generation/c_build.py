"""Build a library from cpu_decoder.c. The building of a wheel runs this file alone: it imports nothing of gptlab."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("cpu_decoder.c")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")


class Level(NamedTuple):
    """A set of instructions that a library is built for."""

    name: str
    flags: tuple[str, ...]
    """Of the compiler."""
    features: frozenset[str]
    """What Linux calls the instructions, all of which the processor must have."""


AVX2 = frozenset(("avx2", "bmi2", "f16c", "fma"))
AVX512 = AVX2 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
LEVELS = {  # by the machine's name, the best first
    "x86_64": (
        Level("x86-64-v4-vnni", ("-march=x86-64-v4", "-mavx512vnni"), AVX512 | {"avx512_vnni"}),
        Level("x86-64-v4", ("-march=x86-64-v4",), AVX512),
        Level("x86-64-v3", ("-march=x86-64-v3",), AVX2),
        Level("x86-64", ("-march=x86-64",), frozenset()),
    ),
    "aarch64": (
        Level("armv8.2-dotprod", ("-march=armv8.2-a+dotprod",), frozenset(("asimddp",))),
        Level("armv8", ("-march=armv8-a",), frozenset()),
    ),
}
NATIVE = ("-march=native",)


def compiler() -> str | None:
    """Return the path of the machine's C compiler; None: it has none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def build(command: str, flags: tuple[str, ...], target: Path) -> None:
    """Build the library.

    Args:
        command: the compiler.
        flags: the instructions to use: those of a level, or `NATIVE`.
        target: the file to write; its folder is used for the work.

    Raises:
        OSError: the compiler cannot be started.
        subprocess.SubprocessError: it fails, or takes longer than a minute.
    """
    made = target.with_suffix(".o")
    steps = ([*FLAGS, *flags, "-c", str(SOURCE), "-o", str(made)], ["-shared", str(made), "-o", str(target)])
    for arguments in steps:  # linked without an OpenMP library, so that torch's threads are used
        subprocess.run([command, *arguments], check=True, capture_output=True, timeout=60)
    made.unlink()
