"""The library of c/decoder.c: one that came with the wheel, or one built at the first use, for all later runs too.

Where neither can be had, torch does the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gptlab.generation import c_build
from gptlab.system.files import user_folder
from gptlab.system.machine import processor_features

log = logging.getLogger(__name__)

READY = Path(__file__).with_name("libraries")  # in a wheel that was built with them


@functools.cache
def load_library() -> Any:
    """Return the function of c/decoder.c; None where there is no library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with ExitStack() as stack:
            if (file := ready_library()) is None:
                if (compiler := c_build.compiler()) is None:
                    return None
                file = build_library(compiler, stack)
            loaded = ctypes.CDLL(str(file))  # stays in memory when its file goes
    except (OSError, subprocess.SubprocessError) as error:
        reason: object = error
        if isinstance(error, subprocess.CalledProcessError):
            reason = f"{error.cmd[0]} exits with {error.returncode}"
        log.warning(
            "the C of gptlab cannot be built (%s): torch generates, several times as slowly; "
            "mend the compiler, or take it out of PATH",
            reason,
        )
        return None
    function = loaded.cpu_decoder
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, *[ctypes.c_void_p] * 4, *[ctypes.c_long] * 2]
    function.restype = None
    return function


def ready_library() -> Path | None:
    """Return the file of the wheel's library with the most of this processor's instructions; None: it has none."""
    features = {*processor_features().split()}
    for level in c_build.LEVELS.get(platform.machine(), ()):
        if level.features <= features and (file := READY / f"{level.name}.so").is_file():
            return file
    return None


def build_library(compiler: str, stack: ExitStack) -> Path:
    """Build the library unless it exists, and return its file; its name has the hash of source, compiler and processor.

    Args:
        compiler: its path.
        stack: where the cache cannot be written, closing this removes the file.

    Raises:
        OSError: a file cannot be written, or the compiler cannot be started.
        subprocess.SubprocessError: the compiler fails or takes longer than a minute.
    """
    source, flags = c_build.source(), (*c_build.FLAGS, *c_build.NATIVE)
    recipe = "\n".join((source, compiler, *flags, platform.machine(), processor_features()))
    name = f"cpu_decoder-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    folder = user_folder(None)
    if not is_whole(folder / name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
        except OSError:
            usable = False
        if not usable:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gptlab-")))
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work, name)
            c_build.build(compiler, c_build.NATIVE, made)
            content = made.read_bytes()
            made.write_bytes(content + hashlib.sha256(content).digest())  # loaders do not read behind the end
            made.replace(folder / name)
    return folder / name


def is_whole(file: Path) -> bool:
    """Return whether a library has the hash of its content at its end: loading one that was cut off is a crash."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]
