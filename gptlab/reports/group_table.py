"""The tables of a report: a row for each run, and a row for each group with its mean and interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from gptlab.reports.records import Run
from gptlab.reports.statistics import compare_means, half_width
from gptlab.runs.identity import flatten
from gptlab.system.errors import UserError, did_you_mean

WHOLE = ("parameters", "trained_parameters", "flops", "tokens")
MEANS = {key: key for key in WHOLE} | {"train_seconds": "seconds"}
MEANS |= {key: key for key in ("train/loss", "gap", "val/bpb")}


def run_table(grouped: list[list[Run]], described: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    """Return one row for each run; numbers that are not finite become NaN."""
    runs = pd.DataFrame(
        _run_row(run, name, values)
        for name, values, each in zip(names, described, grouped, strict=True)
        for run in each
    )
    numbers = runs.select_dtypes("float")
    runs[numbers.columns] = numbers.where(np.isfinite(numbers))
    runs["gap"] = runs["val/loss"] - runs["train/loss"]
    if "val/bpb" not in runs:  # no loss of these is of a text
        runs["val/bpb"] = math.nan
    return runs


def group_table(
    runs: pd.DataFrame, described: list[dict[str, Any]], names: list[str], metric: str, baseline: str | None
) -> pd.DataFrame:
    """Return one row for each group, by label; compared with the group `baseline` unless that is None."""
    parts = {name: runs[runs["group"] == name] for name in names}
    by_seed = {name: dict(zip(part["seed"], part[metric], strict=True)) for name, part in parts.items()}
    return pd.DataFrame(
        {
            "group": name,
            **values,
            **_group_row(parts[name], metric),
            **(compare_means(by_seed[name], by_seed[baseline]) if baseline is not None else {}),
        }
        for name, values in zip(names, described, strict=True)
    ).set_index("group")


def _run_row(run: Run, name: str, values: dict[str, Any]) -> dict[str, Any]:
    environment = flatten(run.environment)
    where = {"version": environment.get("versions.gptlab"), "commit": environment.get("git_commit")}
    path = str(run.path).encode(errors="backslashreplace").decode()  # pandas takes no name that is no UTF-8
    trained = {"trained_parameters": run.summary["parameters"]}  # of older versions, which trained all
    summary = {key: each for key, each in run.summary.items() if not isinstance(each, list)}
    return {"run": path, "group": name, **values, "task.name": run.task, **trained, **summary, **where}


def _group_row(part: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the means over the runs of a group, and the 95% interval of the mean of `metric`."""
    half = float(half_width(part[metric].to_numpy()))
    mean = {key: float(part[key].mean(skipna=False)) for key in (metric, *MEANS)}
    whole = {key: round(mean[key]) for key in WHOLE if math.isfinite(mean[key])}
    return {
        "n": len(part),
        "mean": mean[metric],
        "low": mean[metric] - half,
        "high": mean[metric] + half,
        **{column: whole.get(key, mean[key]) for key, column in MEANS.items()},
    }


def sorted_labels(
    groups: pd.DataFrame, axes: list[str], short: dict[str, str], sort: str, best_is_high: bool
) -> list[str]:
    """Return the labels sorted by an axis or a column: numbers before words, unknown values last.

    Args:
        best_is_high: whether the highest mean comes first.

    Raises:
        UserError: there is no such axis or column.
    """
    columns = {**{short[axis]: axis for axis in axes}, **{key: key for key in (*axes, *groups)}}
    if sort not in columns:
        raise UserError(f"--sort {sort}: there is no such axis or column; {did_you_mean(sort, columns)}")

    def rank(row: tuple[str, Any, float]) -> tuple[bool, bool, Any, bool, float]:
        _, each, mean = row
        mean = -mean if best_is_high else mean
        each = mean if sort == "mean" else each
        return each != each, isinstance(each, str), 0 if each != each else each, mean != mean, mean

    rows = zip(groups.index, groups[columns[sort]].tolist(), groups["mean"].tolist(), strict=True)
    return [name for name, _, _ in sorted(rows, key=rank)]
