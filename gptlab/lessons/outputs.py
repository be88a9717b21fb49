"""Read numbers from what a chapter's commands have written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from gptlab.lessons.lesson import Read
from gptlab.runs import directory
from gptlab.system.errors import UserError
from gptlab.system.files import read_json


def of_summary(run: str, key: str) -> Read:
    """Return what reads a number of a run's summary.json.

    Args:
        run: the run's folder in the chapter's outputs.
    """
    return lambda folder: number(finished(folder / run), (key,), folder / run / "summary.json")


def at_step(run: str, key: str, step: int) -> Read:
    """Return what reads a number of a run's metrics.csv, e.g. val/loss before step 0."""

    def read(folder: Path) -> float:
        finished(folder / run)
        with (folder / run / "metrics.csv").open(newline="") as file:
            rows = {row["step"]: row.get(key) for row in csv.DictReader(file)}
        found = rows.get(str(step))
        return number(float(found) if found else None, (), folder / run / "metrics.csv")

    return read


def of_job(sweep: str, point: dict[str, str], key: str) -> Read:
    """Return what reads a number of the summary.json of a sweep's job.

    Args:
        sweep: the sweep's folder in the chapter's outputs.
        point: the keys that the job varies, with their values as typed, without the seed.
    """
    return lambda folder: of_summary(".", key)(job_folder(folder / sweep, point))


def of_json(file: str, *keys: str | int) -> Read:
    """Return what reads a number of a JSON file in the chapter's outputs, by keys and places in lists."""
    return lambda folder: number(content_of(folder / file), keys, folder / file)


def finished(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a run.

    Raises:
        UserError: the run has not finished.
    """
    summary = directory.read_summary(run_dir)
    if summary is None:
        raise UserError(f"{run_dir}: there is no finished run; run the chapter first (python -m gptlab.lesson N)")
    return summary


def job_folder(sweep_dir: Path, point: dict[str, str]) -> Path:
    """Return the folder of a sweep's job by what it varies; of several the one that a sweep has looked at last.

    Raises:
        UserError: there is none.
    """
    found = []
    for path in sweep_dir.glob("*/job.json"):
        overrides = content_of(path).get("overrides")
        if isinstance(overrides, dict) and {k: v for k, v in overrides.items() if k != "seed"} == point:
            found.append(path)
    if not found:
        words = " ".join(f"{key}={value}" for key, value in point.items())
        raise UserError(f"{sweep_dir}: there is no run of {words}; run the chapter first (python -m gptlab.lesson N)")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def content_of(file: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_json(file, must_be_sealed=False)
    except UserError as error:
        raise UserError(f"{file.parent}: {error}; run the chapter first (python -m gptlab.lesson N)") from error


def number(content: Any, keys: tuple[str | int, ...], file: Path) -> float:
    """Return the number that these keys lead to.

    Raises:
        UserError: there is none: the file is that of another version.
    """
    found = content
    try:
        for key in keys:
            found = found[key]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, int | float):
        raise UserError(f"{file} has no number {'.'.join(map(str, keys))}: make it again with --again")
    return float(found)
