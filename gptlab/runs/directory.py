"""Read and write the files of a run directory, and lock it for one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from gptlab.system.errors import UserError
from gptlab.system.files import plain_tree, read_bytes, read_json, seal, unseal, write_atomically
from gptlab.system.terminal import pasteable

SUMMARY_FORMAT = 1
LOCK = ".lock"
PRESETS = "presets.json"  # what the chosen groups compose to without further words, see `compose.presets_of`
PAGE = "index.html"  # a finished run's page, or a report's
MAX_CONFIG_BYTES = 1 << 20


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's config.yaml.

    Raises:
        UserError: it cannot be read, is not a config, or was changed after it was written; the message does not repeat
            the folder.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if available
    try:
        content = yaml.load(unseal(read_bytes(path, MAX_CONFIG_BYTES), path.name), Loader=loader)
    except UserError:
        raise
    except Exception as error:  # a wrong date, a number of a thousand digits, ...: each raises another class
        raise UserError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is no config")
    return plain_tree(content, path.name)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write a run's config.yaml, sealed.

    Raises:
        UserError: see `write_atomically`.
    """
    from omegaconf import OmegaConf

    content = seal(OmegaConf.to_yaml(OmegaConf.create(config))).encode()
    write_atomically(path, lambda file: file.write(content))


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock `run_dir`, so that only one process trains in it; the lock ends with the process, however it ends.

    Raises:
        UserError: another process has the lock.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(run_dir / LOCK, timeout=1):
            yield
    except Timeout:
        raise UserError(f"{run_dir}: another process is training there; wait for it, or stop it first") from None


def in_use(run_dir: Path) -> bool:
    """Return whether a process trains in `run_dir`."""
    if not (run_dir / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def first_process() -> bool:
    """Return whether this is a run's only process, or the first of several started by Lightning or a cluster."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """Read a finished run's summary; None if it is missing, unreadable or was changed."""
    try:
        summary = read_json(run_dir / "summary.json", must_be_sealed=False)
    except UserError:
        return None
    needed = ("status", "steps", "val/loss", "best_val_loss")
    return summary if all(key in summary for key in needed) else None


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has a checkpoint to resume from."""
    return (run_dir / "config.yaml").is_file() and any((run_dir / "checkpoints").glob("*.ckpt"))


def resumable(run_dir: Path) -> Path:
    """Return the config file of a run that can be resumed, if only from its start.

    Raises:
        UserError: `run_dir` is not a run directory.
    """
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"{pasteable('resume', str(run_dir))} is not a run directory (no config.yaml in it); runs lie in "
            f"outputs/<name>/<time>"
        )
    return config


def remove_if_empty(run_dir: Path) -> None:
    """Remove the first files, the folder and its empty parents of a run that was refused before it started."""
    here = Path.cwd()
    if in_use(run_dir):
        return  # by another process
    with suppress(OSError):  # not there, or not empty
        if {path.name for path in run_dir.iterdir()} <= {"train.log", LOCK, PRESETS}:
            for path in run_dir.iterdir():
                path.unlink()
        for folder in (run_dir, *(parent for parent in run_dir.parents if here in parent.parents)):
            folder.rmdir()
