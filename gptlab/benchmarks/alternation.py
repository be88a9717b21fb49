"""Measure processes in turn, A B A B, on one machine: one works while the others wait without using it.

An order is a line of JSON on a child's standard input, the answer one on its standard output; everything else that the
child prints goes into its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.system import machine, threads
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    import torch

Answer = dict[str, Any]
LAST_LINES = 12  # lines of a dead child's log that the error message shows


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Inside, so many processes compute without a pause beside everything else; they end with this one."""
    spin = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10**6))"
    started = [subprocess.Popen([sys.executable, "-c", spin], start_new_session=True) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


class Child:
    """A child process, as its parent sees it; it leads a process group, so that Ctrl-C reaches only the parent.

    Args:
        name: the name of the child and of its log.
        folder: where its log and its cache of compiled code go; the cache starts empty, to measure compilation.
        env: variables that it has beside ours.
    """

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"{name}.cache")} | (env or {})
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
        with suppress(BrokenPipeError):  # `receive` will report why the child died
            print(json.dumps(order), file=self.process.stdin, flush=True)

    def receive(self) -> Answer:
        """Return the child's next answer.

        Raises:
            UserError: the child refuses the order, or has died.
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
        """Send an order and return its answer; raises as `receive`."""
        self.send(**order)
        return self.receive()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *args: Any) -> None:
        """Kill the child and all processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class Parent:
    """The parent process, as a child sees it; from its creation on, the child's output goes into the log."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def receive(self) -> Answer | None:
        """Return the next order; None when the parent is gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None


class Stopwatch:
    """Measures seconds between marks; waits for a GPU only at the start and the end, so that its queue stays full.

    Args:
        device: whose work is measured; None: the CPU, and torch is not needed.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        wait_for(device)
        self._begin = time.perf_counter()
        self._marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Mark the end of a step."""
        if not is_cuda(self.device):
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def read(self) -> Answer:
        """Return the `total` seconds and the list of `seconds` between marks."""
        wait_for(self.device)
        total = time.perf_counter() - self._begin
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if is_cuda(self.device):
            return {"total": total, "seconds": [a.elapsed_time(b) / 1e3 for a, b in pairs]}
        return {"total": total, "seconds": [b - a for a, b in pairs]}


def is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def wait_for(device: torch.device | None) -> None:
    """Wait until `device` has finished its queued work; None is the CPU, here and below."""
    if device is not None and device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)


def in_another_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a module returns, called in a process of its own, whose memory goes with it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(device: torch.device | None) -> int | None:
    """Return this process's peak memory in bytes: allocated by torch on a GPU, else resident; None if unknown."""
    if is_cuda(device):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory_bytes()


def about_here(device: torch.device | None) -> Answer:
    """Return the facts that a child reports before its first step: memory, threads and processes."""
    return {"memory_before": memory(device), "threads": threads.in_use(), "processes": 1}


def make_steps(parent: Parent, step: Callable[[], object], device: torch.device) -> None:
    """Make as many steps as each order asks for, and answer with their times, until the parent is gone."""
    parent.send(**about_here(device))
    while (order := parent.receive()) is not None:
        watch = Stopwatch(device)
        for _ in range(order["steps"]):
            step()
            watch.mark()
        parent.send(**watch.read(), memory=memory(device))
