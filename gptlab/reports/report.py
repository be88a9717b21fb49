"""Build a report on a set of runs: their groups, the statistics over seeds, and what limits the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gptlab.reports import published_figures, units
from gptlab.reports.baseline import choose_baseline
from gptlab.reports.conditions import comparison_notes, conditions_of
from gptlab.reports.confusion import Confusion, confusions_of
from gptlab.reports.group_table import group_table, run_table, sorted_labels
from gptlab.reports.grouping import distinguishing_values, group_labels, group_runs
from gptlab.reports.records import LeftOut, Run, read_curves, read_runs
from gptlab.runs.identity import short_names
from gptlab.system.errors import UserError, did_you_mean


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
    chosen, notes = choose_baseline(grouped, described, names, short, baseline)
    compared = len(names) > 1 and (baseline is not None or not all(run.searched for run in measured))

    runs = run_table(grouped, described, names)
    groups = group_table(runs, described, names, metric, names[chosen] if compared else None)
    tasks = units.tasks_of(measured)
    conditions = conditions_of(metric, tasks, groups, names[chosen])
    if reference is not None:
        conditions.append(_add_reference(groups, [each[0].facts for each in grouped], reference, metric))
    return Report(
        metric=metric,
        axes=axes,
        short=short,
        one_at_a_time=base is not None,
        baseline=names[chosen] if compared else "",
        groups=groups.loc[sorted_labels(groups, axes, short, sort, units.higher_is_better(metric))],
        runs=runs,
        left_out=left_out + lacking + repeated,
        conditions=conditions,
        notes=notes + comparison_notes(runs, metric, axes) + units.notes(measured, metric, chosen_metric),
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
