"""What two runs differ in: the config, what surrounded them, the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.reports.records import Run, is_run, read, value
from gptlab.runs.identity import flatten
from gptlab.system.errors import UserError


def diff(a: Path, b: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """What two runs differ in: key, a's value, b's; None for a key that only the other has.

    Under "config" and "surroundings" what differs, under "results" every number that either has.

    Raises:
        UserError: one of them is no finished run.
    """

    def pairs(left: dict[str, Any], right: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        return [(key, left.get(key), right.get(key)) for key in dict.fromkeys([*left, *right])]

    def about(run: Run) -> dict[str, Any]:
        data = {key: each for key, each in run.summary.items() if key.startswith("data.")}
        return {
            key: each for key, each in flatten(run.environment).items() if key not in ("command", "data_sha256")
        } | data

    def numbers(run: Run) -> dict[str, Any]:
        kept = {k: v for k, v in run.summary.items() if isinstance(v, int | float) and k not in ("format", "seed")}
        return {key: each for key, each in kept.items() if not key.startswith("data.")}

    both = [_read_one(path) for path in (a, b)]
    configs = [{k: value(v) for k, v in run.config.items() if not k.startswith("recipe.")} for run in both]
    return {
        "config": [row for row in pairs(*configs) if row[1] != row[2]],
        "results": pairs(*map(numbers, both)),
        "surroundings": [row for row in pairs(*map(about, both)) if row[1] != row[2]],
    }


def _read_one(path: Path) -> Run:
    if not is_run(path):
        raise UserError(f"--diff {path}: is not a run directory (no config.yaml in it)")
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"--diff {path}: {error}") from error
