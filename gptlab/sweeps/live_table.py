"""Show a running sweep on a terminal: a live table of its jobs, or a line whenever one starts or ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gptlab.sweeps.jobs import Job
from gptlab.sweeps.launchers import JobProgress, RunningElsewhere
from gptlab.system import terminal


class Plan(Protocol):
    """The part of a sweep's plan that is shown."""

    total: int


class Jobs(Protocol):
    """The parts of a sweep that are shown."""

    progress: dict[Job, JobProgress]
    signal: int | None
    metric: str

    @property
    def plan(self) -> Plan: ...

    def having(self, state: str) -> list[Job]: ...

    def running(self) -> list[Job]: ...

    def seconds_left(self) -> float | None: ...


class LiveTable:
    """A live table on a terminal; elsewhere a line whenever a job starts or ends."""

    def __init__(self, sweep: Jobs) -> None:
        self.sweep = sweep
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._printed: dict[Job, str] = {}

    def __enter__(self) -> LiveTable:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.update()
        if self.live:
            self.live.stop()

    def update(self) -> None:
        """Show what has changed."""
        if self.live:
            self.live.update(Group(*self.content()), refresh=True)
            return
        for number, (job, progress) in enumerate(self.sweep.progress.items(), start=1):
            if self._printed.get(job) != progress.state:
                self._printed[job] = progress.state
                loss = "" if progress.loss is None else f", {self.sweep.metric} {progress.loss:.4f}"
                print(f"{number}/{self.sweep.plan.total} {job.name}: {self.state(job)}{loss}", flush=True)

    def state(self, job: Job) -> str:
        progress = self.sweep.progress[job]
        elsewhere = progress.state == "running" and isinstance(progress.handle, RunningElsewhere)
        return "running elsewhere" if elsewhere else progress.state

    def content(self) -> Iterator[Any]:
        """Yield the summary line and the table: running and failed jobs, and as many of the newest others as fit."""
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
        for column in ("step", sweep.metric, "best", "time"):
            table.add_column(column, justify="right", no_wrap=True)
        colours = {"running": "cyan", "finished": "green", "failed": "red", "pruned": "yellow", "stopped": "yellow"}
        for job in shown:
            p = sweep.progress[job]
            table.add_row(
                Text(job.name, overflow="ellipsis"),
                Text(self.state(job), style=colours.get(p.state, "")),
                f"{p.step:,}/{job.max_steps:,}",
                "" if p.loss is None else f"{p.loss:.4f}",
                "" if p.best is None else f"{p.best:.4f}",
                terminal.duration(p.seconds) if p.handle else "",
            )
        yield Text(line, style="bold", no_wrap=True, overflow="ellipsis")
        yield table
