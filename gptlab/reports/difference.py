"""Compare two runs: their configs, their environments and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.reports.records import Run, comparable_value, is_run, read_run
from gptlab.runs.identity import flatten
from gptlab.system.errors import UserError


def compare_runs(a: Path, b: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """List the differences of two runs as rows of key, a's value and b's value; None for a key that a run lacks.

    "config" and "surroundings" hold only the keys that differ, "results" every number of either run.

    Raises:
        UserError: one of them is not a finished run.
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
    configs = [{k: comparable_value(v) for k, v in run.config.items() if not k.startswith("recipe.")} for run in both]
    return {
        "config": [row for row in pairs(*configs) if row[1] != row[2]],
        "results": pairs(*map(numbers, both)),
        "surroundings": [row for row in pairs(*map(about, both)) if row[1] != row[2]],
    }


def _read_one(path: Path) -> Run:
    if not is_run(path):
        raise UserError(f"--diff {path}: is not a run directory (no config.yaml in it)")
    try:
        return read_run(path)
    except UserError as error:
        raise UserError(f"--diff {path}: {error}") from error
