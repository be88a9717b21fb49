"""Plot what runs measured on their way: the curves of the groups, and the smallest beside the largest model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gptlab.reports.number_words import compact_number
from gptlab.reports.plots.style import (
    COLOURS,
    DARK,
    SEEDS_FOR_BAND,
    Colours,
    add_legend,
    make_panels,
    shorten_label,
)
from gptlab.reports.records import read_curves
from gptlab.reports.report import Report
from gptlab.reports.statistics import half_width
from gptlab.reports.units import NATS, axis_label, is_share, loss_is_trained, unit

FEW_POINTS = 5  # curves with at most so many points show them


def mean_curve(curves: list[pd.DataFrame]) -> pd.DataFrame:
    """Average the curves of a group's runs over the validated steps that they share.

    Args:
        curves: see `run_curves`.

    Returns:
        By step, val and train, and half the width of val's 95% interval; empty if no run has a curve.
    """
    if not curves:
        return pd.DataFrame()
    shared = pd.concat(curves, axis=1, join="inner", keys=range(len(curves)))
    val, train = (shared.xs(which, axis=1, level=1).to_numpy().T for which in ("val", "train"))
    return pd.DataFrame({"val": val.mean(0), "half": half_width(val), "train": train.mean(0)}, index=shared.index)


def run_curves(report: Report, group: str) -> list[pd.DataFrame]:
    """Return val and train by validated step for each run of a group that has validated at least twice.

    train/loss is averaged since the previous validation, which smooths it. It is NaN where val is another measure.
    """
    curves = []
    for run_dir in report.runs[report.runs["group"] == group]["run"]:
        frame = read_curves(Path(run_dir))
        if not {"train/loss", report.curve} <= set(frame):
            continue
        val, train = (frame[column].dropna().groupby(level=0).last() for column in (report.curve, "train/loss"))
        if len(val) > 1:
            place = np.minimum(val.index.searchsorted(train.index), len(val) - 1)
            smooth = train.groupby(val.index[place]).mean()
            curves.append(pd.DataFrame({"val": val, "train": smooth if _shows_train(report) else math.nan}))
    return curves


def _shows_train(report: Report) -> bool:
    """Return whether curves show train/loss beside val/loss."""
    return report.curve == NATS and loss_is_trained(report.tasks)


def _loss_label(report: Report) -> str:
    return f"loss ({unit(NATS, report.tasks)})"


def draw_curves(report: Report, colours: Colours) -> Figure | None:
    """Plot val/loss with its spread and train/loss dashed; in a second panel the second half of val/loss alone.

    The second panel is left out where no group has two validations in its second half.
    """
    singles = {name: run_curves(report, name) for name in colours}
    means = {name: each for name, curves in singles.items() if len(each := mean_curve(curves))}
    if not means:
        return None
    halves = {name: each.index[-1] / 2 for name, each in means.items()}
    has_end = any((each.index >= halves[name]).sum() > 1 for name, each in means.items())
    figure, (whole, *ends) = make_panels(9 if has_end else 7, 3.8, 2 if has_end else 1)
    for name, each in means.items():
        _draw_val_loss(whole, each, singles[name], colours[name], is_share(report.curve))
        for axes in ends:
            second = [part[part.index >= halves[name]] for part in (each, *singles[name])]
            _draw_val_loss(axes, second[0], second[1:], colours[name], is_share(report.curve))
        whole.plot(each.index, each["train"], color=colours[name], lw=0.8, ls="--", marker=_point_marker(each), ms=3)
    dashed = ", train/loss since the validation before (dashed)" if _shows_train(report) else ""
    label = _loss_label(report) if dashed else axis_label(report.curve, report.tasks)
    whole.set(title=f"{report.curve} (solid){dashed}", xlabel="steps", ylabel=label)
    for axes in ends:
        axes.set(
            title=f"{report.curve}, the second half", xlabel="steps", ylabel=axis_label(report.curve, report.tasks)
        )
    counts = [len(singles[name]) for name in means]
    seeds = sorted({int(n) for n in report.groups["n"]})
    words = f"mean over seeds (n = {', '.join(map(str, seeds))})" if max(seeds) > 1 else ""
    words += "; band: its 95% interval" if max(counts) >= SEEDS_FOR_BAND else ""
    if len(colours) < len(report.groups):
        words = f"the best, the worst and the baseline of {len(report.groups)} groups{'; ' * bool(words)}{words}"
    if words:
        figure.suptitle(words, fontsize=9)
    entries: dict[str, Any] = {name: colours[name] for name in means}
    if any(1 < count < SEEDS_FOR_BAND for count in counts):
        entries[f"thin: single seeds (no band for fewer than {SEEDS_FOR_BAND})"] = Line2D([], [], color=DARK, lw=0.6)
    add_legend(figure, entries)
    return figure


def _draw_val_loss(
    axes: Axes, mean: pd.DataFrame, singles: list[pd.DataFrame], colour: str, share: bool = False
) -> None:
    """Draw the mean val/loss of a group, with its 95% interval as a band, or with thin single curves for few seeds.

    Args:
        share: it is a share, and the band ends at 0 and 1.
    """
    axes.plot(mean.index, mean["val"], color=colour, marker=_point_marker(mean), ms=4)
    if len(singles) >= SEEDS_FOR_BAND:
        limits = (0, 1) if share else (None, None)
        low, high = (each.clip(*limits) for each in (mean["val"] - mean["half"], mean["val"] + mean["half"]))
        axes.fill_between(mean.index, low, high, color=colour, alpha=0.2, lw=0)
    elif len(singles) > 1:
        for single in singles:
            axes.plot(single.index, single["val"], color=colour, lw=0.6)


def _point_marker(curve: pd.DataFrame) -> str:
    return "o" if len(curve) <= FEW_POINTS else ""


def draw_size(report: Report) -> Figure | None:
    """Plot the curves of the smallest and the largest model, with their gaps; None if their sizes are alike.

    None, too, where val/loss does not compare the runs, or is another measure than train/loss: a gap is between them.
    """
    if not _shows_train(report):
        return None
    rows = report.groups[report.groups["mean"].notna()].sort_values(["parameters", "mean"])
    if len(rows) < 2 or rows["parameters"].iloc[-1] < 1.5 * rows["parameters"].iloc[0]:
        return None
    largest = rows[rows["parameters"] == rows["parameters"].iloc[-1]]
    names = (rows.index[0], largest.index[0])
    both = [mean_curve(run_curves(report, name)) for name in names]
    if not all(map(len, both)):
        return None
    figure, (axes,) = make_panels(6.5, 4)
    entries: dict[str, Any] = {}
    after = []  # losses after the first tenth: the y axis fits these, the first steps would flatten them
    for name, each, colour in zip(names, both, (COLOURS[1], COLOURS[0]), strict=True):
        for column, style in (("val", "-"), ("train", "--")):
            (line,) = axes.plot(each.index, each[column], style, color=colour)
            entries[f"{shorten_label(name)}, {compact_number(rows['parameters'][name])} parameters: {column}/loss"] = (
                line
            )
        step, val, train = each.index[-1], each["val"].iloc[-1], each["train"].iloc[-1]
        arrow = {"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (step, val), (step, train), arrowprops=arrow)
        lift = 7 if name == names[0] else -7  # points, so that labels at equal heights do not overlap
        beside: dict[str, Any] = {"xytext": (6, lift), "textcoords": "offset points", "va": "center"}
        axes.annotate(
            f"gap {val - train:.2f}", (step, (val + train) / 2), color=colour, annotation_clip=False, **beside
        )
        after.append(each.loc[each.index > 0.1 * step, ["val", "train"]].to_numpy())
    shown = np.ma.masked_invalid(np.concatenate(after))
    room = 0.05 * (shown.max() - shown.min())
    axes.set(ylim=(shown.min() - room, shown.max() + room), xlabel="steps", ylabel=_loss_label(report))
    axes.set_title("the smallest and the largest model (train/loss: mean since the validation before)")
    add_legend(figure, entries)
    return figure
