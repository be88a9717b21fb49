"""Build a report on a set of runs: their groups, the statistics over seeds, and what limits the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptlab.reports import published_figures, units
from gptlab.reports.confusion import Confusion, confusions_of
from gptlab.reports.grouping import TRAITS, distinguishing_values, group_labels, group_runs
from gptlab.reports.records import LeftOut, Run, comparable_value, find_runs, read_curves, read_run
from gptlab.reports.statistics import compare_means, half_width
from gptlab.runs.identity import flatten, short_names
from gptlab.system.errors import UserError, did_you_mean

PROTOCOLS = {
    "val/loss": "of the last checkpoint, over the whole validation split",
    "best_val_loss": "the lowest of a run's validations, chosen on the validation split itself",
    "test/loss": "of the last checkpoint, over the whole test split",
    "val/bpb": "of the last checkpoint, over the whole validation split",
    "test/bpb": "of the last checkpoint, over the whole test split",
}
TESTS = {
    "paired": "paired t-tests over the shared seeds",
    "Welch": "Welch's t-tests, where seeds do not pair",
}
WHOLE = ("parameters", "trained_parameters", "flops", "tokens")
MEANS = {key: key for key in WHOLE} | {"train_seconds": "seconds"}
MEANS |= {key: key for key in ("train/loss", "gap", "val/bpb")}


@dataclass(frozen=True)
class Report:
    """The results of a set of runs.

    Args:
        axes: the keys that vary between groups.
        short: the shortest distinct name of each axis.
        one_at_a_time: whether all groups differ from one of them in exactly one key each.
        baseline: the label of the group that the others are compared with; "" if there is none.
        groups: one row for each group, indexed by label and sorted; NaN is unknown.
        runs: one row for each run; the column `group` is the label of its group.
        conditions: sentences that explain how the numbers were measured.
        notes: sentences that say why these runs are less comparable than they look.
        curve: what curves show, e.g. val/loss or val/bpb: what compares the runs.
        tasks: the runs' tasks, on which the units of their losses depend.
        confusions: of groups of classifiers, by label.
    """

    metric: str
    axes: list[str]
    short: dict[str, str]
    one_at_a_time: bool
    baseline: str
    groups: pd.DataFrame
    runs: pd.DataFrame
    left_out: list[LeftOut]
    conditions: list[str]
    notes: list[str]
    curve: str = units.NATS
    tasks: tuple[str, ...] = ("pretrain",)
    confusions: dict[str, list[Confusion]] = field(default_factory=dict)

    @property
    def best_first(self) -> pd.DataFrame:
        """The groups sorted by their means, the best first and unknown ones last."""
        return self.groups.sort_values("mean", ascending=not units.higher_is_better(self.metric))


def is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def compact_number(number: float) -> str:
    """Return a number in a few characters: 804k, 10.7M, 1.24B, 1.2e15; "-" if it is not finite."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= number < 1e12:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}".replace("e+", "e") if is_finite(number) else "-"


def build_report(
    paths: Sequence[Path],
    metric: str | None = None,
    baseline: str | None = None,
    sort: str = "mean",
    reference: str | None = None,
) -> Report:
    """Build the report on the runs among and below `paths`.

    Raises:
        UserError: there is nothing to report, or an argument matches none of the runs.
    """
    return report_on(*read_runs(paths), metric, baseline, sort, reference)


def report_on(
    found: list[Run],
    left_out: list[LeftOut],
    metric: str | None = None,
    baseline: str | None = None,
    sort: str = "mean",
    reference: str | None = None,
) -> Report:
    """Build the report on runs that are read.

    Args:
        found, left_out: see `read_runs`.
        metric: a number of the summaries; None: val/loss, or what compares the runs in its place, see
            `units.deciding_metric`.
        baseline: a group's label, or key=value words that match exactly one group.
        sort: an axis or a column of the groups.
        reference: the name of a reference; "" for the one that fits best.

    Raises:
        UserError: an argument matches none of the runs.
    """
    chosen_metric = metric is None
    if metric is None:
        metric = units.deciding_metric(found) if reference is None else units.NATS  # references are in nats per token
    measured, lacking = _with_metric(found, metric)
    grouped, repeated = group_runs(measured)
    described, base = distinguishing_values(grouped)
    axes = list(described[0])
    short = short_names(axes)
    names = group_labels(described, base, short) if axes else [str(grouped[0][0].config.get("name", "run"))]
    chosen, notes = _baseline(grouped, described, names, short, baseline)
    compared = len(names) > 1 and (baseline is not None or not all(run.searched for run in measured))

    runs = _run_table(grouped, described, names)
    groups = _group_table(runs, described, names, metric, names[chosen] if compared else None)
    tasks = units.tasks_of(measured)
    conditions = _conditions(metric, tasks, groups, names[chosen])
    if reference is not None:
        conditions.append(_add_reference(groups, [each[0].facts for each in grouped], reference, metric))
    return Report(
        metric=metric,
        axes=axes,
        short=short,
        one_at_a_time=base is not None,
        baseline=names[chosen] if compared else "",
        groups=groups.loc[_order(groups, axes, short, sort, units.higher_is_better(metric))],
        runs=runs,
        left_out=left_out + lacking + repeated,
        conditions=conditions,
        notes=notes + _notes(runs, metric, axes) + units.notes(measured, metric, chosen_metric),
        curve=_curve(metric, measured),
        tasks=tasks,
        confusions=dict(zip(names, map(confusions_of, grouped), strict=True)),
    )


def _curve(metric: str, runs: Sequence[Run]) -> str:
    """Return what curves show: the metric itself, on the validation part, if the runs have measured it there."""
    part, _, kind = metric.rpartition("/")
    on_the_way = f"val/{kind}"
    known = part in ("val", "test") and on_the_way in read_curves(runs[0].path)
    return on_the_way if known else units.deciding_metric(runs)


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read the finished runs; the others are left out.

    Raises:
        UserError: there is no such run.
    """
    found: list[Run] = []
    left_out: list[LeftOut] = []
    for path in find_runs(paths):
        try:
            found.append(read_run(path))
        except UserError as error:
            left_out.append(LeftOut(path, str(error)))
    if not found:
        where = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        why = "".join(f"\n  {each.path}: {each.why}" for each in left_out[:10])
        raise UserError(f"{where}: no finished run there; a run lies in outputs/<name>/<time>{why}")
    return found, left_out


def _with_metric(found: list[Run], metric: str) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs that have measured `metric`; the others are left out.

    Raises:
        UserError: there is no such run.
    """
    measured = [run for run in found if units.is_number(run.summary.get(metric))]
    if not measured:
        keys = {key for run in found for key, each in run.summary.items() if isinstance(each, int | float)}
        raise UserError(f"--metric {metric}: no run has measured it; {did_you_mean(metric, keys)}")
    return measured, [
        LeftOut(run.path, f"has no {metric}") for run in found if not units.is_number(run.summary.get(metric))
    ]


def _run_table(grouped: list[list[Run]], described: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
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


def _group_table(
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


def _add_reference(groups: pd.DataFrame, facts: list[dict[str, Any]], reference: str, metric: str) -> str:
    """Add published figures to `groups` as a column; returns the sentence that says where they are from.

    Args:
        facts: the `Run.facts` of each group.

    Raises:
        UserError: there are no figures for `metric`; also see `published_figures.choose_reference`.
    """
    if metric not in ("val/loss", "best_val_loss"):
        raise UserError(f"--reference: its figures are validation losses, not {metric}; leave one of the two out")
    name = published_figures.choose_reference(reference, facts)
    figures = [published_figures.REFERENCES[name].figure(each) for each in facts]
    groups["reference"] = pd.Series(figures, index=groups.index, dtype=object)
    return published_figures.REFERENCES[name].description(name, facts)


def _baseline(
    groups: list[list[Run]],
    described: list[dict[str, Any]],
    names: list[str],
    short: dict[str, str],
    wanted: str | None,
) -> tuple[int, list[str]]:
    """Return the index of the group that the others are compared with, and notes on that choice."""
    if wanted is not None:
        return _requested_baseline(described, names, short, wanted), []
    first = names.index("baseline") if "baseline" in names else 0
    planned = [run.baseline for each in groups for run in each if run.baseline is not None]
    if not planned or any(each != planned[0] for each in planned):
        return first, []
    fits = [number for number, each in enumerate(groups) if each[0].typed == planned[0]]
    if fits:
        return fits[0], []
    return first, [f"the sweep's own baseline is not among these runs; {names[first]} stands in for it"]


def _requested_baseline(described: list[dict[str, Any]], names: list[str], short: dict[str, str], wanted: str) -> int:
    """Return the index of the group that `wanted` names: a label, or key=value words that match one group.

    Raises:
        UserError: it matches none or several.
    """
    if wanted in names:
        return names.index(wanted)
    words = [word.partition("=") for word in wanted.split()]
    fits = [
        number
        for number, each in enumerate(described)
        if all(
            any(key in (k, short[k]) and comparable_value(text) == v for k, v in each.items()) for key, _, text in words
        )
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        which = ", ".join(names[number] for number in fits[:3]) + (" ..." if len(fits) > 3 else "")
        raise UserError(
            f"--baseline {wanted!r}: {len(fits)} groups are so ({which}); say more, e.g. {names[fits[0]]!r}"
        )
    raise UserError(f"--baseline {wanted!r}: there is no such group; {did_you_mean(wanted, names)}")


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


def _order(groups: pd.DataFrame, axes: list[str], short: dict[str, str], sort: str, best_is_high: bool) -> list[str]:
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


def _conditions(metric: str, tasks: Sequence[str], groups: pd.DataFrame, base: str) -> list[str]:
    """Return sentences that explain how the numbers were measured."""
    protocol = PROTOCOLS.get(metric, "from the runs' summaries")
    if unit := units.unit(metric, tasks):
        protocol += f", {unit}" if unit in ("per pair", units.LOSSES["grpo"]) else f", in {unit}"
    words = [f"{metric}: {protocol}; the mean over n seeds with its 95% interval (Student's t), ? for a single seed"]
    if "test" in groups:
        kinds = groups["test"].value_counts()
        tests = " or ".join(f"{TESTS[kind]} ({count} rows)" for kind, count in kinds.items() if kind in TESTS)
        by = f", with its 95% interval, by {tests}; p is not corrected for the number of rows" if tests else ""
        words.append(f"difference: from {base}{by}")
        fewer = groups[(groups["test"] == "paired") & (groups["pairs"] < groups["n"].clip(lower=groups["n"][base]))]
        if len(fewer):
            words.append(f"over the shared seeds only, hence not that of the means: {', '.join(fewer.index)}")
    losses = "train/loss: the last batches, with dropout; gap: val/loss less train/loss; "
    words.append(f"{losses if units.loss_is_trained(tasks) else ''}time: of training alone")
    return words


def _notes(frame: pd.DataFrame, metric: str, axes: list[str]) -> list[str]:
    """Return sentences that say why these runs are less comparable than they look."""
    notes = []
    for what, (column, explained) in TRAITS.items():
        if column not in frame:
            continue
        counts = frame[column].map(lambda each: "unknown" if pd.isna(each) else str(each)[:48]).value_counts()
        if len(counts) > 1 and not any(axis.partition(".")[0] in explained for axis in axes):
            which = ", ".join(f"{each} ({count})" for each, count in counts.head(5).items())
            notes.append(f"the runs have different {what}: {which}{', ...' if len(counts) > 5 else ''}")
    for name, part in frame.groupby("group", sort=False):
        diverged = part[part[metric].isna()]
        if len(diverged):
            seeds = ", ".join(map(str, diverged["seed"]))
            notes.append(f"{name}: {metric} is not finite for seed {seeds}, so there is no mean")
        early = part["status"].to_list().count("stopped_early") if "status" in part else 0
        if early:
            notes.append(f"{name}: {early} of {len(part)} runs stopped early")
    return notes
