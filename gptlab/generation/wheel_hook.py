"""A wheel with the library of the files in c in it, for machines without a compiler: with GPTLAB_WHEEL_LIBRARY=1.

Otherwise a wheel is of Python alone, and the library is built where it is used. hatchling runs this file.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASKED = "GPTLAB_WHEEL_LIBRARY"
ROOM = Path("gptlab", "generation")


class LibraryHook(BuildHookInterface):
    """Builds the library for each set of instructions of this machine's kind."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or os.environ.get(ASKED, "0") == "0":
            return
        build = self._build_module()
        levels, compiler = build.LEVELS.get(platform.machine(), ()), build.compiler()
        if not sys.platform.startswith("linux") or not levels or compiler is None:
            raise RuntimeError(f"{ASKED}: needs a C compiler, on Linux on x86_64 or aarch64; leave it out")
        self.work = tempfile.TemporaryDirectory()
        for level in levels:
            made = Path(self.work.name, f"{level.name}.so")
            build.build(compiler, level.flags, made)
            build_data["force_include"][str(made)] = str(ROOM / "libraries" / made.name)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "work"):
            self.work.cleanup()

    def _build_module(self) -> Any:
        spec = importlib.util.spec_from_file_location("c_build", Path(self.root, ROOM, "c_build.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where NamedTuple looks for its annotations
        spec.loader.exec_module(module)
        return module
