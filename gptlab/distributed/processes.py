"""A run in several processes: who started them, how many there are, and how they start training together.

torchrun and SLURM's srun start all processes at once. First only process 0 reads the config and prepares the run, as
if it were alone. When nothing can be refused any more it sends the run's folder to the others, and they follow. So one
process prints, one folder is made, and a refused run ends everywhere. (Without torchrun or srun, Lightning's launcher
starts the other processes, at the same moment and to the same effect.)
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from gptlab.system.errors import UserError
from gptlab.system.terminal import single_quoted

log = logging.getLogger(__name__)

JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes of a run to arrive


@dataclass(frozen=True)
class Place:
    """The place of this process among those that torchrun or srun has started."""

    rank: int
    size: int
    """Number of processes of the run."""
    local_size: int
    """Number of them on this machine."""
    starter: str
    """torchrun or srun."""


def place() -> Place | None:
    """Return the place of this process; None if neither torchrun nor srun started it beside others.

    Raises:
        UserError: SLURM's processes are not spread evenly over the machines.
    """
    _adopt_slurm()
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return None
    size, slurm = int(env["WORLD_SIZE"]), "SLURM_PROCID" in env and "TORCHELASTIC_RUN_ID" not in env
    local_size = int(env.get("LOCAL_WORLD_SIZE", size))
    return Place(int(env["RANK"]), size, local_size, "srun" if slurm else "torchrun")


def _adopt_slurm() -> None:
    """Set the environment variables of torchrun in a process that srun has started beside others."""
    env = os.environ
    size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if "SLURM_PROCID" not in env or size == 1 or {"RANK", "LOCAL_RANK"} & env.keys():
        return
    machines = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
    if size % machines:
        raise UserError(f"srun has started {size} processes on {machines} machines: give --ntasks-per-node=...")
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], str(size)
    env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"] = env.get("SLURM_LOCALID", env["RANK"]), str(size // machines)
    env["GROUP_RANK"] = env.get("SLURM_NODEID", "0")
    lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    env.setdefault("MASTER_ADDR", first_machine(next((env[name] for name in lists if env.get(name)), "127.0.0.1")))
    # The same port for all processes of a job's step, and rarely the port of another job on the machine.
    number = int(env.get("SLURM_JOB_ID") or 0) + 97 * int(env.get("SLURM_STEP_ID") or 0)
    env.setdefault("MASTER_PORT", str(15_000 + number % 10_000))


def first_machine(names: str) -> str:
    """Return the first name of SLURM's list of machines: gpu-[07-09,12],login1 -> gpu-07."""
    match = re.match(r"([^\[,\s]*)(?:\[([^\]\-,]*)[^\]]*\])?([^\[,\s]*)", names)
    assert match is not None
    return match[1] + (match[2] or "") + match[3]


def devices(wanted: int | str, visible: int) -> int:
    """Return how many devices of this machine the run uses, one for each process.

    Args:
        wanted: trainer.devices, a number or "auto".
        visible: what "auto" means if nobody has started several processes.

    Raises:
        UserError: `wanted` contradicts the number of processes on this machine.
    """
    here = place()
    if here is None:
        return visible if wanted == "auto" else int(wanted)
    if wanted not in ("auto", here.local_size):
        raise UserError(
            f"trainer.devices={wanted}, but {here.starter} has started {here.local_size} process(es) on this machine: "
            f"give trainer.devices=auto, or trainer=ddp or trainer=fsdp, which have it"
        )
    return here.local_size


def machines() -> int:
    """Return over how many machines the run's processes are spread.

    Raises:
        UserError: they are not spread evenly.
    """
    here = place()
    if here is None:
        return 1
    if here.size % here.local_size:
        raise UserError(f"{here.starter} has started {here.size} processes, {here.local_size} of them here: uneven")
    return here.size // here.local_size


class _Process:
    """The state of this process: its current run and the number of runs before it."""

    def __init__(self) -> None:
        self.number = 0
        """How many runs there have been, the same in each process."""
        self.base: Any = None
        """torch's key-value store for all runs, which process 0 may have to serve."""
        self.new_run()

    def new_run(self) -> None:
        self.number += 1
        self.store: Any = None
        """The part of `base` for this run; None: there are no other processes."""
        self.has_announced = False
        """In process 0: whether it has sent the others its message."""
        self.training = False
        """Whether all processes have begun training."""


_process = _Process()  # a process is in one run at a time, and its store outlives a run


def join(arguments: list[str]) -> list[str]:
    """Return the command line of this process: `arguments`, and after process 0 the run's folder that it sent.

    Processes other than 0 wait here until process 0 has prepared the run.

    Raises:
        UserError: not all processes have arrived.
        SystemExit: process 0 has refused the run, and said why, or has ended without one.
    """
    here = place()
    _process.new_run()
    if here is None or here.size == 1:
        return arguments
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        _process.base = _process.base or next(iter(rendezvous("env://", timeout=JOIN_TIMEOUT)))[0]
    except RuntimeError as error:
        raise UserError(
            f"of the {here.size} processes that {here.starter} should have started not all have come to "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {JOIN_TIMEOUT.seconds // 60} minutes; "
            f"under SLURM start them with srun"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _process.store = PrefixStore(f"gptlab/{attempt}/{_process.number}", _process.base)
    if here.rank == 0:
        return arguments
    _wait_until(lambda: _process.store.check(["first"]))
    message = json.loads(_process.store.get("first"))
    _process.store.add("heard", 1)
    if message["run_dir"] is None:
        sys.exit(message["code"])
    return [*arguments, f"hydra.run.dir={single_quoted(message['run_dir'])}", f"hydra.job.name=process_{here.rank}"]


def begin(run_dir: Path) -> None:
    """Let the processes begin training together; process 0 has checked all that can be refused.

    Raises:
        UserError: in process 0, if another process has refused the run.
        SystemExit: in the other processes, for the same reason.
    """
    here = place()
    if _process.store is not None and here is not None and not _process.training:
        if here.rank == 0:
            _tell_others(str(run_dir), 0)
        _process.store.add("ready", 1)
        _wait_until(lambda: _process.store.check(["refused"]) or _process.store.add("ready", 0) >= here.size)
        if _process.store.check(["refused"]):
            if here.rank == 0:
                raise UserError(_process.store.get("refused").decode())
            sys.exit(1)
    _process.training = True


def refuse(reason: object) -> None:
    """End the run of this process with an error, which process 0 alone reports.

    Raises:
        SystemExit: this is not process 0.
    """
    here = place()
    if here is not None and here.rank > 0:
        if _process.store is not None:
            _process.store.set("refused", f"process {here.rank}, on {socket.gethostname()}: {reason}")
        sys.exit(1)
    if here is None and os.environ.get("LOCAL_RANK", "0") != "0":  # started by Lightning's launcher
        sys.exit(1 if _process.training else f"error: process {os.environ['LOCAL_RANK']}: {reason}")


def leave() -> None:
    """Tell the other processes that this one's command has ended, so that none waits for it."""
    here, error = place(), sys.exc_info()[1]
    if _process.store is None or here is None or _process.training:
        return
    try:
        if here.rank == 0 and not _process.has_announced:
            _tell_others(None, 0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)
            end = time.monotonic() + 10
            _wait_until(lambda: _process.store.add("heard", 0) >= here.size - 1 or time.monotonic() > end)
        elif here.rank > 0 and error is not None and not isinstance(error, SystemExit):
            refuse(f"{type(error).__name__}: {error}")
    except RuntimeError:  # the others have ended already
        return


def _tell_others(run_dir: str | None, code: int) -> None:
    """Send the run's folder, or None and an exit code, to the other processes."""
    _process.store.set("first", json.dumps({"run_dir": run_dir, "code": code}))
    _process.has_announced = True


def _wait_until(done: Callable[[], object]) -> None:
    """Wait without a time limit, e.g. while process 0 prepares a large text; exit if its store is gone."""
    try:
        while not done():
            time.sleep(0.05)
    except RuntimeError:  # the process or torchrun that serves the store has ended
        sys.exit(1)


def requeue() -> None:
    """Put this job back into SLURM's queue; a failure is logged, not raised."""
    import subprocess

    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        log.error("job %s could not be put back into SLURM's queue: %s", job, problem)
    else:
        log.warning("job %s is back in SLURM's queue", job)
