"""Build the frontier of a set of runs: the reward of each group, and its divergence from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from gptlab.reports.number_words import is_finite
from gptlab.reports.records import LeftOut, Run, read_curves, read_runs
from gptlab.reports.report import Report, report_on
from gptlab.reports.statistics import half_width
from gptlab.reports.units import differing, is_number, texts
from gptlab.runs.identity import REWARD
from gptlab.system.errors import UserError, did_you_mean

METRICS = ("test/reward", "val/reward")  # what is gained unless another metric is asked for, the first that is known
CHOSEN_BY = {"reward": "", "judged_reward": " by the reward model"}
"""What the best of n answers may be chosen by, and what is said of it."""
MEASURED_BY = ("init_from", *REWARD, "task.answer_tokens")
CURVE_KEYS = {"reward": MEASURED_BY, "judged_reward": (*MEASURED_BY, "reward.model")}
"""Config keys that decide what a curve of the best of n is of."""
TASKS = "task=dpo, task=ppo and task=grpo"


@dataclass(frozen=True)
class Frontier:
    """Groups of runs by their reward and their divergence from the reference, in nats an answer.

    Args:
        points: a row for each group, in ascending order of kl: task, n, and of kl, reward, judged_reward and win_rate
            the mean and half the width of its 95% interval, kl_half and so on; NaN is unknown.
        best_of_n: rows of chosen_by (one of `CHOSEN_BY`), n, kl, reward, reward_half, and the number of measurements;
            empty if there are none.
        paths: by group, of each run that was validated at several steps: kl, reward and judged_reward by step, on the
            validation part.
        conditions: sentences that explain how the numbers were measured.
    """

    metric: str
    points: pd.DataFrame
    best_of_n: pd.DataFrame
    paths: dict[str, list[pd.DataFrame]]
    left_out: list[LeftOut]
    conditions: list[str]


def build_frontier(paths: Sequence[Path], metric: str | None = None) -> Frontier:
    """Build the frontier of the runs among and below `paths`.

    Args:
        metric: what is gained, e.g. test/accuracy; its part, before the slash, is that of the KL, too. None:
            test/reward, or val/reward if no run has that. The best of n, which is measured on the test part, goes with
            test/reward only.

    Raises:
        UserError: no run has both numbers.
    """
    found, left_out = read_runs(paths)
    metric = metric or next((each for each in METRICS if not all(_lacks(run, each) for run in found)), METRICS[0])
    measured = [run for run in found if not _lacks(run, metric)]
    if not measured:
        raise UserError(_nothing(found, metric))
    lacking = [LeftOut(run.path, why) for run in found if (why := _lacks(run, metric))]
    report = report_on(measured, left_out + lacking, metric)
    columns = {"kl": _beside(metric, "kl"), "reward": metric}
    columns |= {key: _beside(metric, key) for key in ("judged_reward", "win_rate") if key != metric.partition("/")[2]}
    points = pd.DataFrame([_point(report, str(name), columns) for name in report.groups.index]).set_index("group")
    best_of_n, notes = _best_of_n(measured) if metric == "test/reward" else (pd.DataFrame(), [])
    return Frontier(
        metric=metric,
        points=points.sort_values("kl", kind="stable"),
        best_of_n=best_of_n,
        paths={str(name): _paths(report, str(name)) for name in report.groups.index},
        left_out=report.left_out,
        conditions=_conditions(report, best_of_n) + notes + [f"note: {each}" for each in report.notes],
    )


def _beside(metric: str, kind: str) -> str:
    """Return the name of another measure of the same part: test/reward -> test/kl."""
    return f"{metric.rpartition('/')[0] or 'test'}/{kind}"


def _has(run: Run, key: str) -> bool:
    return is_number(run.summary.get(key))


def _lacks(run: Run, metric: str) -> str:
    """Return which of the two numbers a run has not measured, as why it is left out; "" if it has both."""
    keys = [key for key in dict.fromkeys((metric, _beside(metric, "kl"))) if not _has(run, key)]
    return f"has no {' and no '.join(keys)}" if keys else ""


def _nothing(found: list[Run], metric: str) -> str:
    """Return what to say where no run has both numbers."""
    if metric not in METRICS and not any(_has(run, metric) for run in found):
        keys = {key for run in found for key in run.summary if _has(run, key)}
        return f"--metric {metric}: no run has measured it; {did_you_mean(metric, keys)}"
    wanted = f"{metric} and {_beside(metric, 'kl')}"
    return f"--frontier: no run has measured both {wanted}; runs of {TASKS} measure reward and KL"


def _point(report: Report, name: str, columns: dict[str, str]) -> dict[str, Any]:
    """Return the row of a group: the means of these columns over its runs, with half their intervals."""
    part = report.runs[report.runs["group"] == name]
    row: dict[str, Any] = {"group": name, "task": part["task.name"].iloc[0], "n": len(part)}
    for key, column in columns.items():
        values = part[column].to_numpy(dtype=float) if column in part else np.array([np.nan])
        row |= {key: float(values.mean()), f"{key}_half": float(half_width(values))}
    return row


def _paths(report: Report, name: str) -> list[pd.DataFrame]:
    """Return kl, reward and judged_reward by validated step, of each run of a group that was validated twice."""
    found = []
    kind = report.metric.rpartition("/")[2]
    for run_dir in report.runs[report.runs["group"] == name]["run"]:
        frame = read_curves(Path(run_dir))
        if {"val/kl", f"val/{kind}"} <= set(frame):
            path = frame.reindex(columns=["val/kl", f"val/{kind}", "val/judged_reward"])
            path = path.set_axis(["kl", "reward", "judged_reward"], axis=1).dropna(subset=["kl", "reward"])
            path = path.groupby(level=0).last()
            found += [path] if len(path) > 1 else []
    return found


def _best_of_n(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Return the mean curves of the best of n over the runs' measurements, and notes on those that are not drawn.

    A run with a reward model has chosen by that. Runs that share a reference and a seed have measured the same answers:
    equal curves count once. Where the runs that chose alike have measured different things, they have no mean.
    """
    measured: dict[str, list[Run]] = {by: [] for by in CHOSEN_BY}
    notes, found = [], []
    for run in runs:
        rows = run.summary.get("best_of_n")
        if _is_curve(rows):
            measured["judged_reward" if _has(run, "test/judged_reward") else "reward"].append(run)
        elif rows is not None:
            notes.append(f"note: {run.path}: its best_of_n is not rows of n, reward and KL, and is not drawn")
    for by, some in measured.items():
        differ = differing(some, CURVE_KEYS[by]) + ["their data"] * (texts(some) > 1)
        if differ:
            notes.append(f"note: no best of n{CHOSEN_BY[by]} is drawn: the runs differ in {', '.join(differ)}")
        elif some:
            curves = dict.fromkeys(tuple(map(tuple, run.summary["best_of_n"])) for run in some)
            found.append(_mean_curve(by, list(curves)))
    return (pd.concat(found, ignore_index=True) if found else pd.DataFrame()), notes


def _mean_curve(chosen_by: str, curves: Sequence[tuple[tuple[float, ...], ...]]) -> pd.DataFrame:
    """Return the mean of curves of n, reward and KL over the n that they share."""
    frames = [pd.DataFrame(rows, columns=["n", "reward", "kl"]).set_index("n") for rows in curves]
    both = pd.concat(frames, axis=1, join="inner", keys=range(len(frames))).sort_index()
    rewards, kl = (both.xs(key, axis=1, level=1).to_numpy().T for key in ("reward", "kl"))
    mean = {"kl": kl.mean(0), "reward": rewards.mean(0), "reward_half": half_width(rewards)}
    n = both.index.astype(int)
    return pd.DataFrame({"chosen_by": chosen_by, "n": n, **mean, "measurements": len(frames)})


def _is_curve(rows: object) -> TypeGuard[list[list[float]]]:
    return (
        isinstance(rows, list)
        and len(rows) > 0
        and all(isinstance(row, list) and len(row) == 3 and all(map(is_finite, row)) for row in rows)
        and len({row[0] for row in rows}) == len(rows)
    )


def _conditions(report: Report, best_of_n: pd.DataFrame) -> list[str]:
    kl = _beside(report.metric, "kl")
    words = [
        f"{report.metric} against {kl}, the divergence from the reference in nats an answer; means over n seeds with "
        "their 95% intervals (Student's t), ? for a single seed"
    ]
    for by, curve in best_of_n.groupby("chosen_by", sort=False) if len(best_of_n) else ():
        count = curve["measurements"].iloc[0]
        times = "measured once" if count == 1 else f"measured {count} times, with its 95% interval"
        name = f"best of n{CHOSEN_BY[str(by)]}"
        words.append(f"{name}: of the reference's own answers, {times}; its KL is log n - (n - 1) / n")
    return words
