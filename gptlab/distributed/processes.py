"""A run in several processes: who started them, how many there are, and what they tell each other before training.

torchrun and SLURM's srun start all processes at once. The first alone then reads the config and prepares the run, as
if there were no others; when nothing can be refused any more it tells them the run's folder, and they follow. So one
process speaks, one folder is made, and a refused run ends everywhere. (Where nobody has started others, Lightning's
launcher does, at the same moment and to the same end.)
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
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

PATIENCE = timedelta(minutes=10)  # until all processes of a run must have come


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that torchrun or srun has started."""

    rank: int
    size: int
    """All processes of the run."""
    local_size: int
    """Those on this machine."""
    starter: str


def place() -> Place | None:
    """None: nobody has started more than this process.

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
    """Give a process that srun has started beside others the variables that torchrun would have given it."""
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
    # The same for all processes of a job's step, and seldom that of another on the machine.
    number = int(env.get("SLURM_JOB_ID") or 0) + 97 * int(env.get("SLURM_STEP_ID") or 0)
    env.setdefault("MASTER_PORT", str(15_000 + number % 10_000))


def first_machine(names: str) -> str:
    """The first of SLURM's list of names: gpu-[07-09,12],login1 -> gpu-07."""
    match = re.match(r"([^\[,\s]*)(?:\[([^\]\-,]*)[^\]]*\])?([^\[,\s]*)", names)
    assert match is not None
    return match[1] + (match[2] or "") + match[3]


def devices(asked: int | str, visible: int) -> int:
    """How many devices of this machine the run takes, a process each.

    Args:
        asked: trainer.devices, a number or "auto": as many as were started; else `visible`.

    Raises:
        UserError: it contradicts what was started.
    """
    here = place()
    if here is None:
        return visible if asked == "auto" else int(asked)
    if asked not in ("auto", here.local_size):
        raise UserError(
            f"trainer.devices={asked}, but {here.starter} has started {here.local_size} process(es) on this machine: "
            f"give trainer.devices=auto, or trainer=ddp or trainer=fsdp, which have it"
        )
    return here.local_size


def machines() -> int:
    """Over how many machines the run's processes are spread.

    Raises:
        UserError: not evenly.
    """
    here = place()
    if here is None:
        return 1
    if here.size % here.local_size:
        raise UserError(f"{here.starter} has started {here.size} processes, {here.local_size} of them here: uneven")
    return here.size // here.local_size


class _Process:
    """What this process knows of the run that it is in, and of the runs before it."""

    def __init__(self) -> None:
        self.number = 0
        """Of its runs so far, in each process the same."""
        self.base: Any = None
        """torch's store of all of them, which the first process may have to keep up."""
        self.new_run()

    def new_run(self) -> None:
        self.number += 1
        self.store: Any = None
        """Where the processes leave word for each other; None: there are no others."""
        self.told = False
        """The first process: whether the others may follow."""
        self.training = False
        """Whether all have begun."""


_process = _Process()  # a process is in one run at a time, and its store outlives a run


def join(arguments: list[str]) -> list[str]:
    """The command line of this process: what was typed; beside it the run's folder, when the first has told it.

    Raises:
        UserError: not all processes have come.
        SystemExit: the first has refused the run, and said why, or has ended without one.
    """
    here = place()
    _process.new_run()
    if here is None or here.size == 1:
        return arguments
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        _process.base = _process.base or next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
    except RuntimeError as error:
        raise UserError(
            f"of the {here.size} processes that {here.starter} should have started not all have come to "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {PATIENCE.seconds // 60} minutes; "
            f"under SLURM start them with srun"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _process.store = PrefixStore(f"gptlab/{attempt}/{_process.number}", _process.base)
    if here.rank == 0:
        return arguments
    _until(lambda: _process.store.check(["first"]))
    word = json.loads(_process.store.get("first"))
    _process.store.add("heard", 1)
    if word["run_dir"] is None:
        sys.exit(word["code"])
    return [*arguments, f"hydra.run.dir={single_quoted(word['run_dir'])}", f"hydra.job.name=process_{here.rank}"]


def begin(run_dir: Path) -> None:
    """Let the processes begin training together; the first has checked all that can be refused.

    Raises:
        UserError: one of the others has refused the run.
        SystemExit: the same, in the others.
    """
    here = place()
    if _process.store is not None and here is not None and not _process.training:
        if here.rank == 0:
            _tell(str(run_dir), 0)
        _process.store.add("ready", 1)
        _until(lambda: _process.store.check(["refused"]) or _process.store.add("ready", 0) >= here.size)
        if _process.store.check(["refused"]):
            if here.rank == 0:
                raise UserError(_process.store.get("refused").decode())
            sys.exit(1)
    _process.training = True


def refuse(reason: object) -> None:
    """Called where this process ends with an error; one that is not the first leaves it to that to say so.

    Raises:
        SystemExit: it is not the first, and the first says it.
    """
    here = place()
    if here is not None and here.rank > 0:
        if _process.store is not None:
            _process.store.set("refused", f"process {here.rank}, on {socket.gethostname()}: {reason}")
        sys.exit(1)
    if here is None and os.environ.get("LOCAL_RANK", "0") != "0":  # of Lightning's launcher
        sys.exit(1 if _process.training else f"error: process {os.environ['LOCAL_RANK']}: {reason}")


def leave() -> None:
    """Called where the command line ends: nobody waits for a process that has left."""
    here, error = place(), sys.exc_info()[1]
    if _process.store is None or here is None or _process.training:
        return
    try:
        if here.rank == 0 and not _process.told:
            _tell(None, 0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)
            end = time.monotonic() + 10
            _until(lambda: _process.store.add("heard", 0) >= here.size - 1 or time.monotonic() > end)
        elif here.rank > 0 and error is not None and not isinstance(error, SystemExit):
            refuse(f"{type(error).__name__}: {error}")
    except RuntimeError:  # the others are gone already
        return


def _tell(run_dir: str | None, code: int) -> None:
    _process.store.set("first", json.dumps({"run_dir": run_dir, "code": code}))
    _process.told = True


def _until(done: Callable[[], object]) -> None:
    """Wait as long as it takes, e.g. while the first prepares a large text; not for processes that are gone."""
    try:
        while not done():
            time.sleep(0.05)
    except RuntimeError:  # the store has ended with the process, or the torchrun, that keeps it
        sys.exit(1)


def requeue() -> None:
    """Have SLURM put this job back into its queue."""
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
