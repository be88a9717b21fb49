"""Processes that are measured in turn, A B A B, on one machine: one works while the others wait, and use nothing.

An order is a line of JSON on a child's standard input, its answer one on its standard output; all else that it prints
goes into its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.system import machine
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    import torch

Answer = dict[str, Any]
LAST_LINES = 12  # of the log of a child that has died


class Child:
    """A child, as its parent sees it; leads a process group, so that Ctrl-C reaches the parent alone, which ends it.

    Args:
        folder: for its log, and for a cache of compiled code that is empty, so that what it compiles can be measured.
    """

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"{name}.cache")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
                start_new_session=True,
            )

    def send(self, **order: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what it has died of is heard next
            print(json.dumps(order), file=self.process.stdin, flush=True)

    def receive(self) -> Answer:
        """Its next answer.

        Raises:
            UserError: it refuses, or has died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {}
        if "error" in answer:
            raise UserError(answer["error"])
        if not line:
            code = self.process.wait()
            lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise UserError("\n".join([f"the process of {self.name} has ended, with exit code {code}:", *lines]))
        return answer

    def request(self, **order: Any) -> Answer:
        self.send(**order)
        return self.receive()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *args: Any) -> None:
        """End it, and all that it has started; nothing of it is needed any more."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class Parent:
    """The parent, as a child sees it. From now on what the child prints goes into its log."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def receive(self) -> Answer | None:
        """The next order; None when the parent is gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None


class Stopwatch:
    """Seconds between marks. A GPU is waited for at the beginning and at the end alone: until then it has its queue."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        wait_for(device)
        self._begin = time.perf_counter()
        self._marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        if self.device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def read(self) -> Answer:
        """`total` seconds, and the `seconds` from mark to mark."""
        wait_for(self.device)
        total = time.perf_counter() - self._begin
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return {"total": total, "seconds": [a.elapsed_time(b) / 1e3 for a, b in pairs]}
        return {"total": total, "seconds": [b - a for a, b in pairs]}


def wait_for(device: torch.device) -> None:
    """Wait until all that was asked of `device` is done."""
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)


def memory(device: torch.device) -> int | None:
    """The most bytes that this process has had: of a GPU what torch has allocated, else its resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory_bytes()


def about_here(device: torch.device) -> Answer:
    """What a child says of itself before its first step."""
    import torch

    return {"memory_before": memory(device), "threads": torch.get_num_threads(), "processes": 1}


def make_steps(parent: Parent, step: Callable[[], object], device: torch.device) -> None:
    """Make steps, as many as asked for, until the parent is gone."""
    parent.send(**about_here(device))
    while (order := parent.receive()) is not None:
        watch = Stopwatch(device)
        for _ in range(order["steps"]):
            step()
            watch.mark()
        parent.send(**watch.read(), memory=memory(device))
