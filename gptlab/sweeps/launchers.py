"""Launch a sweep's jobs as processes on this machine or through SLURM; a job is a command line in both cases."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptlab.runs import directory
from gptlab.sweeps.jobs import Job
from gptlab.system.errors import UserError
from gptlab.system.machine import gpus
from gptlab.system.threads import cores


class Handle(Protocol):
    """A job that has been started."""

    def poll(self) -> int | None:
        """Return the job's exit code; None while it runs."""

    def stop(self, number: int) -> None:
        """Send signal `number` to the job."""


class RunningElsewhere:
    """A job that another process runs: a killed sweep left it running, or another sweep has started it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def poll(self) -> int | None:
        return None if directory.in_use(self.job.dir) else 0

    def stop(self, number: int) -> None:
        """Do nothing: the other process decides."""


@dataclass
class JobProgress:
    """The state of a job and the latest values of its curves; losses by the sweep's metric."""

    state: str = "waiting"  # then running, finished, failed, pruned, stopped
    handle: Handle | None = None
    started: float = 0.0
    first_step: int = 0
    seconds: float = 0.0
    step: int = 0
    loss: float | None = None
    best: float | None = None
    hopeless: bool = False
    code: int = 0


class LocalHandle:
    """A process on this machine; its slot returns to `free` when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], slot: int, free: list[int]) -> None:
        self.process = process
        self.slot: int | None = slot
        self.free = free

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.slot is not None:
            self.free.append(self.slot)
            self.slot = None
        return code

    def stop(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Local:
    """Run jobs as processes on this machine, which share its cores; with several GPUs each job gets its own.

    Each job leads a process group: signals from the terminal, such as Ctrl-C, reach it only through the sweep, and
    when a sweep is killed its jobs finish.

    Args:
        jobs: how many run at once; None: as many as the GPUs allow, or one on a CPU.
        devices: the number of GPUs of one job.
        on_gpu: whether the jobs use GPUs.
    """

    def __init__(self, jobs: int | None, devices: int = 1, on_gpu: bool = False) -> None:
        names = gpus() if on_gpu else []
        self.gpus = [names[i : i + devices] for i in range(0, len(names) - devices + 1, devices)]
        self.jobs = jobs or max(1, len(self.gpus))
        self._free = list(range(self.jobs))

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the process in `slot`, with its share of the cores and its GPUs."""
        added = {}
        if self.jobs > 1:
            added["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // self.jobs)))
            if self.gpus:
                added["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[slot % len(self.gpus)])
        return os.environ | added

    def start(self, job: Job, log: Path) -> LocalHandle:
        slot = self._free.pop(0)
        with log.open("ab") as file:
            process = subprocess.Popen(
                job.command(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                start_new_session=True,
            )
        return LocalHandle(process, slot, self._free)


def run_logged(job: Job, log: Path) -> int:
    """Run the job, on the cluster's machine, with its output in `log`; returns its exit code.

    A job that a killed sweep left in the queue may have been finished or started by a later sweep.
    """
    if job.summary():
        return 0

    def keep_going() -> None:  # submitit's early warning would end a process without a handler
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    with log.open("ab") as file:
        return subprocess.run(job.command(), stdout=file, stderr=subprocess.STDOUT, preexec_fn=keep_going).returncode


class SlurmHandle:
    """A job in SLURM's queue."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return 1 if self.job.exception() else int(self.job.result())

    def stop(self, number: int) -> None:
        self.job.cancel(check=False)


class Slurm:
    """Run jobs in SLURM's queue, through submitit (https://github.com/facebookincubator/submitit).

    Args:
        jobs: how many are queued at once; None: all.
        parameters: submitit's parameters without the prefix "slurm_": partition, time (minutes), gpus_per_node, ...
        cluster: "slurm", or "local" to try the same without a cluster.

    Raises:
        UserError: submitit or SLURM is not installed, or does not know a parameter.
    """

    def __init__(self, jobs: int | None, folder: Path, parameters: Mapping[str, Any], cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("sweep.launcher=slurm needs submitit: pip install 'gptlab[slurm]'") from error
        self.jobs = jobs or 1_000_000
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            given = {f"{cluster}_{key}": value for key, value in parameters.items() if value is not None}
            self.executor.update_parameters(**given)
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            raise UserError(f"sweep.launcher=slurm: {error}") from error

    def start(self, job: Job, log: Path) -> SlurmHandle:
        self.executor.update_parameters(name=job.name[:100])
        return SlurmHandle(self.executor.submit(run_logged, job, log))
