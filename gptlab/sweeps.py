"""Many runs as one command: each job a child process, started once, gone on with where it was cut off, shown live."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gptlab.jobs import LOG, Job
from gptlab.launchers import Handle, Local, Slurm
from gptlab.plans import Listed, Search
from gptlab.runs import directory
from gptlab.system import terminal
from gptlab.system.errors import UserError

METHODS = ("grid", "one_at_a_time", "optuna")
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class SweepConfig:
    axes: dict[str, Any]
    method: str
    dir: str
    launcher: str
    jobs: int | None
    trials: int
    prune: bool
    slurm: dict[str, Any]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"sweep.method={self.method}: must be one of {', '.join(METHODS)}")
        if self.launcher not in ("local", "slurm"):
            raise UserError(f"sweep.launcher={self.launcher}: must be local or slurm")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"sweep.jobs={self.jobs}: must be at least 1, or null")
        if self.trials < 1:
            raise UserError(f"sweep.trials={self.trials}: must be at least 1")


class Elsewhere:
    """A job that another process is at: a sweep that was killed has left it running, or another one has started it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def poll(self) -> int | None:
        return None if directory.in_use(self.job.dir) else 0

    def stop(self, number: int) -> None:
        """It is not ours to stop."""


@dataclass
class Standing:
    """How far a job has come."""

    state: str = "waiting"  # then running, finished, failed, pruned, stopped
    handle: Handle | None = None
    started: float = 0.0
    first_step: int = 0
    seconds: float = 0.0
    step: int = 0
    val_loss: float | None = None
    best: float | None = None
    hopeless: bool = False
    code: int = 0


@dataclass
class Sweep:
    """Runs what `plan` asks for, at most `launcher.jobs` at once, until nothing is left or a signal comes.

    Args:
        about: what the report must know of the sweep: its name and its baseline.
    """

    plan: Listed | Search
    launcher: Local | Slurm
    about: dict[str, Any]
    dir: Path
    progress: dict[Job, Standing] = field(default_factory=dict)
    signal: int | None = None

    def run(self) -> None:
        """Returns when all jobs have ended, or, after a signal, when those that ran have saved and stopped."""
        with self.listening(), View(self) as view:
            try:
                self.fill()
                while self.running():
                    view.update()
                    time.sleep(POLL_SECONDS)
                    for job in self.running():
                        self.look(job)
                    self.fill()
            except BaseException:  # e.g. a folder that cannot be written: leave nothing running behind
                if self.signal is None:  # a run takes a second one for haste
                    self.stop(signal.SIGINT)
                raise

    def having(self, state: str) -> list[Job]:
        return [job for job, progress in self.progress.items() if progress.state == state]

    def running(self) -> list[Job]:
        return self.having("running")

    def fill(self) -> None:
        """Start jobs while there is room."""
        while self.signal is None and len(self.running()) < self.launcher.jobs:
            job = self.plan.ask()
            if job is None:
                return
            self.progress[job] = Standing(started=time.monotonic())
            if summary := job.summary():
                job.describe(self.about)
                self.end(job, "finished", summary)
            else:
                self.start(job)

    def start(self, job: Job) -> None:
        progress = self.progress[job]
        progress.state = "running"
        try:
            job.prepare(self.about)
            progress.handle = self.launcher.start(job, job.dir / LOG)
        except UserError:
            if not directory.in_use(job.dir):
                raise
            progress.handle = Elsewhere(job)
        if self.signal is not None:  # it came while the job was being started
            progress.handle.stop(signal.SIGINT)
        self.read(job)
        progress.first_step = progress.step

    def read(self, job: Job) -> None:
        """What the job's curves say."""
        progress = self.progress[job]
        for row in job.rows():
            progress.step = int(row["step"])
            if row["val/loss"]:
                progress.val_loss = float(row["val/loss"])
                progress.best = min(progress.val_loss, progress.best or progress.val_loss)

    def look(self, job: Job) -> None:
        """See how a running job goes on, and whether it has ended."""
        progress = self.progress[job]
        assert progress.handle is not None
        elsewhere = isinstance(progress.handle, Elsewhere)
        code = progress.handle.poll()
        if code is None and elsewhere and self.signal is not None:
            code = 0  # no reason to wait for it
        self.read(job)
        progress.seconds = time.monotonic() - progress.started
        if code is None:
            if not progress.hopeless and self.plan.hopeless(job):
                progress.hopeless = True
                progress.handle.stop(signal.SIGTERM)  # once: a run takes the second for haste
        elif summary := job.summary():
            self.end(job, "finished", summary)
        elif self.signal is not None:
            progress.state = "stopped"
        elif progress.hopeless:
            self.end(job, "pruned")
        elif elsewhere or directory.in_use(job.dir):
            self.start(job)  # it was cut off there, or is run by somebody who came between
        else:
            progress.code = code
            self.end(job, "failed")

    def end(self, job: Job, state: str, summary: dict[str, Any] | None = None) -> None:
        progress = self.progress[job]
        progress.state = state
        if summary:
            progress.step = summary["steps"]
            progress.val_loss, progress.best = summary["val/loss"], summary["best_val_loss"]
        self.plan.tell(job, state, progress.val_loss)

    def stop(self, number: int) -> None:
        for job in self.running():
            if handle := self.progress[job].handle:
                handle.stop(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first signal lets the jobs finish their steps and save; the second ends them at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            again, self.signal = self.signal is not None, number
            self.stop(signal.SIGKILL if again else signal.SIGINT)

        numbers = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        handlers = {number: signal.signal(number, stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def seconds_left(self) -> float | None:
        """From the steps that were made since the sweep began; None before there are any."""
        spent = sum(progress.seconds for progress in self.progress.values())
        made = sum(p.step - p.first_step for p in self.progress.values() if p.handle is not None)
        if not made:
            return None
        steps = [job.max_steps for job in self.progress] or [0]
        waiting = self.plan.total - len(self.progress)
        missing = waiting * sum(steps) / len(steps)
        missing += sum(max(0, job.max_steps - self.progress[job].step) for job in self.running())
        return missing * spent / made / max(1, min(self.launcher.jobs, self.plan.total))


class View:
    """A live table on a terminal; a line when a job starts and ends where the output goes elsewhere."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._told: dict[Job, str] = {}

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.update()
        if self.live:
            self.live.stop()

    def update(self) -> None:
        try:
            self.show()
        except OSError:  # the terminal was closed, or what read our lines: the jobs are not to suffer for it
            self.live, sys.stdout = None, open(os.devnull, "w")  # noqa: SIM115, PTH123

    def show(self) -> None:
        if self.live:
            self.live.update(Group(*self.content()), refresh=True)
            return
        for number, (job, progress) in enumerate(self.sweep.progress.items(), start=1):
            if self._told.get(job) != progress.state:
                self._told[job] = progress.state
                loss = "" if progress.val_loss is None else f", val/loss {progress.val_loss:.4f}"
                print(f"{number}/{self.sweep.plan.total} {job.name}: {self.state(job)}{loss}", flush=True)

    def state(self, job: Job) -> str:
        progress = self.sweep.progress[job]
        elsewhere = progress.state == "running" and isinstance(progress.handle, Elsewhere)
        return "running elsewhere" if elsewhere else progress.state

    def content(self) -> Iterator[Any]:
        """The summary line, and a row a job: those that run or failed, and as many of the newest as fit."""
        sweep = self.sweep
        counts = [(len(sweep.having(state)), state) for state in ("finished", "running", "pruned", "failed")]
        line = ", ".join(f"{count} {state}" for count, state in counts if count or state in ("finished", "running"))
        best = min(((p.best, job.name) for job, p in sweep.progress.items() if p.best is not None), default=None)
        line = f"{sweep.plan.total} jobs: {line}"
        if best:
            line += f" · best {best[0]:.4f} {best[1]}"
        left = sweep.seconds_left()
        if sweep.signal is not None:
            line += " · stopping: jobs finish their step and save" if sweep.running() else " · stopped"
        elif left is not None:
            line += f" · {terminal.duration(left)} left"
        room = max(3, self.console.size.height - 6)
        jobs = list(sweep.progress)
        first = [job for job in jobs if sweep.progress[job].state in ("running", "failed")][-room:]
        others = [job for job in jobs if job not in first]
        newest = others[max(0, len(others) + len(first) - room) :]
        shown = [job for job in jobs if job in first or job in newest]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("job", "state"):
            table.add_column(column, no_wrap=True)
        for column in ("step", "val/loss", "best", "time"):
            table.add_column(column, justify="right", no_wrap=True)
        colours = {"running": "cyan", "finished": "green", "failed": "red", "pruned": "yellow", "stopped": "yellow"}
        for job in shown:
            p = sweep.progress[job]
            table.add_row(
                Text(job.name, overflow="ellipsis"),
                Text(self.state(job), style=colours.get(p.state, "")),
                f"{p.step:,}/{job.max_steps:,}",
                "" if p.val_loss is None else f"{p.val_loss:.4f}",
                "" if p.best is None else f"{p.best:.4f}",
                terminal.duration(p.seconds) if p.handle else "",
            )
        yield Text(line, style="bold", no_wrap=True, overflow="ellipsis")
        yield table


def closing_words(sweep: Sweep) -> str:
    """Why jobs have failed, by their last lines; what a search has found."""
    parts = []
    for job in sweep.having("failed"):
        code = sweep.progress[job].code
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = "\n".join(f"    {line}" for line in job.last_lines())
        parts.append(f"failed ({how}): {job.dir / LOG}\n{lines}")
    if words := sweep.plan.closing_words():
        parts.append(words)
    return "\n".join(parts)


def report_command(sweep: Sweep) -> list[str]:
    """The report over the jobs that have finished; files go to the sweep's folder."""
    folders = [str(job.dir) for job in sweep.having("finished")]
    return [sys.executable, "-m", "gptlab.report", *folders, "--out", str(sweep.dir / "report")]
