"""Run a sweep: each job is a child process, which is resumed where it was interrupted, and progress is shown live."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from gptlab.runs import directory
from gptlab.sweeps.jobs import LOG, Job
from gptlab.sweeps.launchers import JobProgress, Local, RunningElsewhere, Slurm
from gptlab.sweeps.live_table import LiveTable
from gptlab.sweeps.plans import FixedPlan, Search
from gptlab.system.errors import UserError

METHODS = ("grid", "one_at_a_time", "optuna")
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class SweepConfig:
    """The config group `sweep`, checked.

    Raises:
        UserError: a value is out of range.
    """

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


@dataclass
class Sweep:
    """Runs the jobs of `plan`, at most `launcher.jobs` at once, until none is left or a signal comes.

    Args:
        about: the sweep's name and baseline, which the report needs.
        metric: the loss that is shown and decides: val/loss, or val/bpb where the jobs' tokens differ.
    """

    plan: FixedPlan | Search
    launcher: Local | Slurm
    about: dict[str, Any]
    dir: Path
    metric: str = "val/loss"
    progress: dict[Job, JobProgress] = field(default_factory=dict)
    signal: int | None = None

    def run(self) -> None:
        """Run until all jobs have ended or, after a signal, until the running ones have saved and stopped."""
        with self.listening(), LiveTable(self) as view:
            try:
                self.fill()
                while self.running():
                    view.update()
                    time.sleep(POLL_SECONDS)
                    for job in self.running():
                        self.look(job)
                    self.fill()
            except BaseException:  # e.g. a folder that cannot be written: leave no job running
                if self.signal is None:  # a second signal would make a run stop without saving
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
            self.progress[job] = JobProgress(started=time.monotonic())
            if summary := job.summary():
                job.describe(self.about)
                self.end(job, "finished", summary)
            else:
                self.start(job)

    def start(self, job: Job) -> None:
        """Start a job, unless another process runs it already."""
        progress = self.progress[job]
        progress.state = "running"
        try:
            job.prepare(self.about)
            progress.handle = self.launcher.start(job, job.dir / LOG)
        except UserError:
            if not directory.in_use(job.dir):
                raise
            progress.handle = RunningElsewhere(job)
        if self.signal is not None:  # the signal came while the job was being started
            progress.handle.stop(signal.SIGINT)
        self.read(job)
        progress.first_step = progress.step

    def read(self, job: Job) -> None:
        """Update the progress of a job from its curves."""
        progress = self.progress[job]
        for row in job.rows():
            progress.step = int(row["step"])
            if row.get(self.metric):
                progress.loss = float(row[self.metric])
                progress.best = min(progress.loss, progress.best or progress.loss)

    def look(self, job: Job) -> None:
        """Update the progress of a running job, and handle its end."""
        progress = self.progress[job]
        assert progress.handle is not None
        elsewhere = isinstance(progress.handle, RunningElsewhere)
        code = progress.handle.poll()
        if code is None and elsewhere and self.signal is not None:
            code = 0  # no reason to wait for it
        self.read(job)
        progress.seconds = time.monotonic() - progress.started
        if code is None:
            if not progress.hopeless and self.plan.hopeless(job):
                progress.hopeless = True
                progress.handle.stop(signal.SIGTERM)  # once: a second would make it stop without saving
        elif summary := job.summary():
            self.end(job, "finished", summary)
        elif self.signal is not None:
            progress.state = "stopped"
        elif progress.hopeless:
            self.end(job, "pruned")
        elif elsewhere or directory.in_use(job.dir):
            self.start(job)  # it was interrupted there, or another process has just started it
        else:
            progress.code = code
            self.end(job, "failed")

    def end(self, job: Job, state: str, summary: dict[str, Any] | None = None) -> None:
        """Record that a job has ended, and tell the plan."""
        progress = self.progress[job]
        progress.state = state
        if summary:
            progress.step = summary["steps"]
            progress.loss = summary[self.metric]
            # Bytes per token of a run are constant, so its best step is the same in both units.
            progress.best = summary["best_val_loss"] * summary[self.metric] / summary["val/loss"]
        self.plan.tell(job, state, progress.loss)

    def stop(self, number: int) -> None:
        """Send signal `number` to all running jobs."""
        for job in self.running():
            if handle := self.progress[job].handle:
                handle.stop(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals: the first lets the jobs finish their steps and save, the second kills them."""

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
        """Estimate the seconds left from the steps made since the sweep started; None before the first step."""
        spent = sum(progress.seconds for progress in self.progress.values())
        made = sum(p.step - p.first_step for p in self.progress.values() if p.handle is not None)
        if not made:
            return None
        steps = [job.max_steps for job in self.progress] or [0]
        waiting = self.plan.total - len(self.progress)
        missing = waiting * sum(steps) / len(steps)
        missing += sum(max(0, job.max_steps - self.progress[job].step) for job in self.running())
        return missing * spent / made / max(1, min(self.launcher.jobs, self.plan.total))


def closing_words(sweep: Sweep) -> str:
    """Return the last lines of failed jobs, and the result of a search."""
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
    """Return the command that reports on the finished jobs; its files go to the sweep's folder."""
    folders = [str(job.dir) for job in sweep.having("finished")]
    return [sys.executable, "-m", "gptlab.report", *folders, "--out", str(sweep.dir / "report")]
