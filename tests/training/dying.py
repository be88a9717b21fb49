"""A process that kills itself at an exact place of its work: in the middle of a write, before or after a rename.

SIGKILL comes where the file operation is made, so it leaves behind what a kill at that moment leaves: no Python code
runs after it, and the bytes that were written before are there.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import mmap
import os
import pathlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gptlab.runs.directory import PAGE


class Marks(ctypes.Structure):
    """What a process says of itself while it lives, in memory that its parent sees after its death."""

    started: int
    """The optimizer steps that had been made when this process began to train; -1: it has not."""
    step: int
    """The steps that have been made."""
    within: int
    """The number of a micro-batch within its step."""
    saved: int
    """How often this process has given a checkpoint the name last.ckpt."""
    doing: bytes
    """Where it killed itself."""
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("started", "step", "within", "saved")),
        ("doing", ctypes.c_char * 512),
    )

    def clear(self) -> None:
        self.started = self.step = -1
        self.within = self.saved = 0
        self.doing = b""


def shared_marks() -> Marks:
    return Marks.from_buffer(mmap.mmap(-1, ctypes.sizeof(Marks)))


@dataclass
class Aim:
    """Where a process dies: at an operation on a file of one kind."""

    kind: str
    """checkpoint, curves, samples, data, start, summary; "": at none."""
    moment: str
    """opened, written (when `size` bytes are), closed, renaming, renamed, cut."""
    size: int
    after: int
    """Not before so many checkpoints are saved,"""
    nth: int
    """and then at the so many-th such operation, from 0."""
    leash: int
    """At the latest after so many checkpoints; and in any case before the summary has its name."""


class Doomed(io.FileIO):
    """A file in which the process dies after `left` bytes, or when it is closed."""

    left: int
    words: str
    marks: Marks

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        if len(data) > self.left:
            super().write(data[: self.left])
            die(self.marks, f"{self.words}, in the middle of a write")
        self.left -= len(data)
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            die(self.marks, f"{self.words}, written and not yet named")


def die(marks: Marks, doing: str) -> NoReturn:
    marks.doing = doing.encode()[:500]
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("is dead")


WORDS = {
    "checkpoint": "writing a checkpoint",
    "curves": "writing curves",
    "samples": "writing samples",
    "data": "preparing data",
    "start": "writing config and environment",
    "summary": "writing the summary",
    "embeddings": "writing the projector's files",
}


def arm(aim: Aim, marks: Marks, run_dir: Path, cache_dir: Path) -> None:
    """Let this process die at `aim`, once it gets there."""
    real_open = io.open

    def kind(path: Any) -> str:
        path = Path(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else Path()
        if cache_dir in path.parents and not path.name.endswith(".lock"):
            return "data"
        if path.parent == run_dir / "checkpoints":
            return "checkpoint"
        if run_dir / "plugins" in path.parents:
            return "embeddings"
        if path.parent != run_dir or path.name in ("train.log", ".lock") or PAGE in path.name:
            return ""
        if "summary.json" in path.name:
            return "summary"
        if path.name == "samples.txt":
            return "samples"
        return "curves" if path.name.startswith(("metrics.csv", "events.out.")) else "start"

    def due(path: Any, *moments: str) -> bool:
        """Whether this is the operation to die at."""
        if kind(path) == "summary" and aim.kind != "":
            return moments == ("opened", "written", "closed")  # the run is not to end in this life
        if aim.kind == "" or kind(path) != aim.kind or aim.moment not in moments or marks.saved < aim.after:
            return False
        aim.nth -= 1
        return aim.nth < 0

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+") or not due(file, "opened", "written", "closed"):
            return real_open(file, mode, *args, **kwargs)
        words = f"{WORDS[kind(file)]} ({Path(os.fsdecode(file)).name})"
        if aim.moment not in ("written", "closed"):
            real_open(file, mode, *args, **kwargs)
            die(marks, f"{words}, opened")
        raw = Doomed(file, mode.replace("b", "").replace("t", ""))
        raw.left, raw.words, raw.marks = aim.size if aim.moment == "written" else 1 << 62, words, marks
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        text = ("encoding", "errors", "newline")
        return io.TextIOWrapper(buffer, **{key: value for key, value in kwargs.items() if key in text})

    def around(name: str, before: str, after: str) -> None:
        """Watch a function of `os` whose last path is the one that it changes."""
        real = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            path = args[1] if name in ("replace", "rename", "link") else args[0]
            if due(path, before):
                die(marks, f"{WORDS[kind(path)]} ({Path(path).name}), before os.{name}")
            result = real(*args, **kwargs)
            if name == "replace" and kind(path) == "checkpoint" and Path(path).name == "last.ckpt":
                marks.saved += 1
                if aim.kind != "" and marks.saved >= aim.leash:
                    die(marks, f"after writing a checkpoint ({Path(path).name}), named")
            if due(path, after):
                die(marks, f"after {WORDS[kind(path)]} ({Path(path).name}), after os.{name}")
            return result

        put(name, watched)

    def put(name: str, function: Any) -> None:
        """Put a function in the place of that of `os`, or open, and where Python 3.10's pathlib holds on to it."""
        if name != "open":
            setattr(os, name, function)
        if accessor := getattr(pathlib, "_NormalAccessor", None):
            setattr(accessor, name, staticmethod(function))

    io.open = builtins.open = open_  # type: ignore[assignment]
    put("open", open_)
    for name in ("replace", "rename", "link"):
        around(name, "renaming", "renamed")
    around("truncate", "", "cut")
    around("unlink", "", "cut")


def watch(marks: Marks) -> None:
    """Let training say where it is."""
    from gptlab.training.module import LMModule

    for name in ("on_train_batch_start", "on_validation_start"):
        real = getattr(LMModule, name)

        def told(self: LMModule, *args: Any, real: Any = real) -> Any:
            trainer = self.trainer
            marks.step = trainer.global_step
            if marks.started < 0 and not trainer.sanity_checking:
                marks.started = trainer.global_step
            marks.within = args[1] % trainer.accumulate_grad_batches if args else 0
            return real(self, *args)

        setattr(LMModule, name, told)
