"""Build a library from the files in c. The building of a wheel runs this file alone: it imports nothing of gptlab."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("c")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-pthread")
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
VNNI = ("-march=x86-64-v4", "-mavx512vnni")
LEVELS = {  # by the machine's name, the best first
    "x86_64": (
        Level("x86-64-v4-bf16", (*VNNI, "-mavx512bf16"), AVX512 | {"avx512_vnni", "avx512_bf16"}),
        Level("x86-64-v4-vnni", VNNI, AVX512 | {"avx512_vnni"}),
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


def source() -> str:
    """Return the text of all files of the library."""
    return "\n".join(file.read_text() for file in sorted(FOLDER.iterdir()))


def compiler() -> str | None:
    """Return the path of the machine's C compiler; None: it has none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def build(command: str, flags: tuple[str, ...], target: Path) -> None:
    """Build the library.

    Args:
        command: the compiler.
        flags: the instructions to use: those of a level, or `NATIVE`.
        target: the file to write.

    Raises:
        OSError: the compiler cannot be started.
        subprocess.SubprocessError: it fails, or takes longer than a minute.
    """
    arguments = (*FLAGS, *flags, "-shared", str(FOLDER / "decoder.c"), "-o", str(target), "-lm")
    subprocess.run([command, *arguments], check=True, capture_output=True, timeout=60)
