"""Plot a report: curves, the loss against each swept key and each cost, and the smallest beside the largest model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gptlab.reports.records import read_curves
from gptlab.reports.report import Report, compact_number, is_finite
from gptlab.reports.statistics import half_width
from gptlab.reports.units import NATS
from gptlab.system.files import write_atomically

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gptlab",  # the same bytes for the same runs
    "text.parse_math": False,  # a $ in a label is a $
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "savefig.dpi": 140.0,
    "lines.linewidth": 1.5,
}
# Okabe and Ito's colours, which colour-blind people can tell apart, without their yellow, which white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
GREY, DARK = "#B8B8B8", "#404040"
POINT: dict[str, Any] = {"ms": 4, "capsize": 2, "lw": 1.2}
COSTS = {"parameters": "parameters", "flops": "training FLOPs", "seconds": "training time"}
MAX_ROWS = 50  # groups in the plot of losses
MAX_LETTERS = 48  # of a label
FEW_POINTS = 5  # curves with at most so many points show them
SEEDS_FOR_BAND = 3  # the t-interval of two seeds is 9 standard deviations wide to each side and would fill the plot

Colours = dict[str, str]  # by label, of the groups with a colour; the others are grey


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield the plots that these runs have enough data for, each with the name of its file."""
    colours = group_colours(report)
    drawn: list[tuple[str, Figure | None]] = [
        ("curves", _curves(report, colours)),
        ("losses", _losses(report)),
        *(("by_" + re.sub(r"[^\w.-]", "_", report.short[axis]), _by_axis(report, axis)) for axis in report.axes),
        *((column, _by_cost(report, column, colours)) for column in COSTS),
        ("size", _size(report)),
    ]
    yield from ((name, figure) for name, figure in drawn if figure is not None)


def write_plots(report: Report, folder: Path) -> list[str]:
    """Write every plot as PNG and SVG; returns their names.

    Raises:
        UserError: the folder cannot be written.
    """
    names = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(report):
            write_atomically(folder / f"{name}.png", partial(figure.savefig, format="png"))
            write_atomically(folder / f"{name}.svg", partial(figure.savefig, format="svg", metadata={"Date": None}))
            names.append(name)
    return names


def group_colours(report: Report) -> Colours:
    """Assign a colour to each of up to eight groups; of more groups, to the best, the baseline and the worst."""
    names = [str(name) for name in report.groups.sort_values("mean").index]
    if len(names) > len(COLOURS):
        best, worst = names[:4], names[-3:]
        names = list(dict.fromkeys([*best, *([report.baseline] if report.baseline else []), *worst]))
    (axis,) = report.axes if len(report.axes) == 1 else (None,)
    if axis and len(names) == len(report.groups) and all(map(is_finite, report.groups[axis])):
        names.sort(key=lambda name: report.groups[axis][name])
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
        return {name: matplotlib.colors.to_hex(shade) for name, shade in zip(names, shades, strict=True)}
    return dict(zip(names, COLOURS, strict=False))


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

    train/loss is averaged since the previous validation, which smooths it. It is NaN where val is in bits per byte.
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
            curves.append(pd.DataFrame({"val": val, "train": smooth if report.curve == NATS else math.nan}))
    return curves


def axis_label(metric: str) -> str:
    kind = metric.rpartition("/")[2]
    known_units = {"loss": "nats per token", "best_val_loss": "nats per token", "bpb": "bits per byte"}
    return f"{metric} ({known_units[kind]})" if kind in known_units else metric


def shorten_label(label: str) -> str:
    """Shorten a label in its middle, since long labels may differ at either end."""
    half = MAX_LETTERS // 2
    return label if len(label) <= MAX_LETTERS else f"{label[:half]}…{label[-half:]}"


def add_others_entry(entries: dict[str, Any], count: int, entry: Any) -> dict[str, Any]:
    """Return the entries of a legend, with one more for `count` groups that have no colour of their own."""
    return entries | ({f"{count} other{'s' * (count > 1)}": entry} if count else {})


def make_panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def legend_marker(shape: str, colour: Any, **style: Any) -> Line2D:
    """Return a marker of this shape as an entry of a legend."""
    return Line2D([], [], color=colour, marker=shape, **{"ls": "", "ms": 5.0, "lw": 1.2, **style})


def draw_error_bars(axes: Axes, x: Any, y: Any, half: Any, style: str, **how: Any) -> None:
    """Draw points, with their intervals where these are known."""
    axes.errorbar(x, y, yerr=np.nan_to_num(half), fmt=style, **POINT, **how)


def add_legend(figure: Figure, entries: dict[str, Any]) -> None:
    """Draw a legend below the plot, in as many columns as fit; `entries` are colours or lines by label."""
    if not entries:
        return
    handles = [each if isinstance(each, Line2D) else Line2D([], [], color=each, lw=2) for each in entries.values()]
    names = list(map(shorten_label, entries))
    columns = max(1, min(len(names), int(figure.get_figwidth() * 14 / (max(map(len, names)) + 7))))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(names) // columns))


def set_log_axis(axes: Axes, values: Sequence[Any]) -> None:
    """Make the x axis logarithmic, with readable ticks even on a short range."""
    decades = np.log10(max(values) / min(values))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact_number(x)))


def is_geometric(values: Iterable[Any]) -> bool:
    """Return whether the values are spaced more evenly as factors than as differences."""
    ordered = np.array(sorted(set(values)), dtype=float)
    if len(ordered) < 3 or ordered[0] <= 0:
        return False
    steps, factors = np.diff(ordered), np.diff(np.log(ordered))
    return bool(np.std(factors) / np.mean(factors) < np.std(steps) / np.mean(steps))


def _curves(report: Report, colours: Colours) -> Figure | None:
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
        _draw_val_loss(whole, each, singles[name], colours[name])
        for axes in ends:
            second = [part[part.index >= halves[name]] for part in (each, *singles[name])]
            _draw_val_loss(axes, second[0], second[1:], colours[name])
        whole.plot(each.index, each["train"], color=colours[name], lw=0.8, ls="--", marker=_point_marker(each), ms=3)
    dashed = ", train/loss since the validation before (dashed)" if report.curve == NATS else ""
    unit = "loss (nats per token)" if dashed else axis_label(report.curve)
    whole.set(title=f"{report.curve} (solid){dashed}", xlabel="steps", ylabel=unit)
    for axes in ends:
        axes.set(title=f"{report.curve}, the second half", xlabel="steps", ylabel=axis_label(report.curve))
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


def _draw_val_loss(axes: Axes, mean: pd.DataFrame, singles: list[pd.DataFrame], colour: str) -> None:
    """Draw the mean val/loss of a group, with its 95% interval as a band, or with thin single curves for few seeds."""
    axes.plot(mean.index, mean["val"], color=colour, marker=_point_marker(mean), ms=4)
    if len(singles) >= SEEDS_FOR_BAND:
        band = mean["val"] - mean["half"], mean["val"] + mean["half"]
        axes.fill_between(mean.index, *band, color=colour, alpha=0.2, lw=0)
    elif len(singles) > 1:
        for single in singles:
            axes.plot(single.index, single["val"], color=colour, lw=0.6)


def _point_marker(curve: pd.DataFrame) -> str:
    return "o" if len(curve) <= FEW_POINTS else ""


def _losses(report: Report) -> Figure | None:
    """Plot each group in a row, the best on top: its mean and interval and every seed; the baseline is a line."""
    rows = report.groups[report.groups["mean"].notna()].sort_values("mean").head(MAX_ROWS)
    if len(rows) < 2:
        return None
    figure, (axes,) = make_panels(7, 1.1 + 0.2 * len(rows))
    place = {name: y for y, name in enumerate(rows.index)}
    seeds = report.runs[report.runs["group"].isin(place)]
    axes.plot(seeds[report.metric], seeds["group"].map(place), "o", color=DARK, ms=2.5, zorder=4)
    y, half = np.arange(len(rows)), np.nan_to_num(rows["mean"] - rows["low"])
    for those, colour in ((rows.index != report.baseline, COLOURS[0]), (rows.index == report.baseline, COLOURS[1])):
        axes.errorbar(rows["mean"][those], y[those], xerr=half[those], fmt="o", color=colour, **POINT)
    entries = {
        "mean and its 95% interval": legend_marker("o", COLOURS[0], ls="-"),
        "one seed": legend_marker("o", DARK, ms=2.5),
    }
    if report.baseline in place:
        axes.axvline(rows["mean"][report.baseline], color=COLOURS[1], lw=0.8, ls=":")
        entries["baseline"] = legend_marker("o", COLOURS[1], ls=":")
    if "reference" in rows and (there := [(v, y) for y, v in enumerate(rows["reference"]) if is_finite(v)]):
        axes.plot(*zip(*there, strict=True), "x", color="black", ms=5)
        entries["reference"] = legend_marker("x", "black")
    axes.set_yticks(range(len(rows)), list(map(shorten_label, rows.index)))
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=axis_label(report.metric))
    which = f", the best {len(rows)} of {len(report.groups)} groups" if len(rows) < len(report.groups) else ""
    axes.set_title(f"{report.metric}: mean over seeds{which}")
    add_legend(figure, entries)
    return figure


def _by_axis(report: Report, axis: str) -> Figure | None:
    """Plot the loss against a swept key, a line for each choice of the others; None if another plot shows the same."""
    rows = report.groups[report.groups["mean"].notna()]
    others = [each for each in report.axes if each != axis]
    numeric = all(map(is_finite, rows[axis]))
    levels = sorted(set(rows[axis] if numeric else map(str, rows[axis])))
    if len(levels) < (3 if report.one_at_a_time else 2) or (not numeric and (report.one_at_a_time or not others)):
        return None
    rows = rows.assign(x=rows[axis] if numeric else [levels.index(str(each)) for each in rows[axis]]).sort_values("x")
    lines = {key: part for key, part in _groups_by_values(report, rows, others).items() if len(part) > 1}
    # In a random search hardly two groups have the same values of the other keys.
    at_random = not report.one_at_a_time and sum(map(len, lines.values())) < len(rows) / 2
    if at_random:
        lines = {"": rows}
    best = sorted(lines, key=lambda key: lines[key]["mean"].min())[: len(COLOURS)]
    colours = dict(zip((key for key in lines if key in best), COLOURS, strict=False))

    figure, (axes,) = make_panels(6, 3.8)
    for number, (key, part) in enumerate(lines.items()):
        x = part["x"] if numeric else part["x"] + 0.5 * ((number + 0.5) / len(lines) - 0.5)  # side by side
        colour, above = colours.get(key, GREY), 3 if key in colours else 2
        style = "o-" if numeric and not at_random else "o"
        draw_error_bars(axes, x, part["mean"], part["mean"] - part["low"], style, color=colour, zorder=above)
        if report.baseline in part.index and not at_random:
            axes.plot(x[report.baseline], part["mean"][report.baseline], "o", ms=9, mfc="none", mec=colour)
    if not numeric:
        axes.set_xticks(range(len(levels)), [shorten_label(str(level)) for level in levels])
        axes.set_xlim(-0.5, len(levels) - 0.5)
    elif is_geometric(levels):
        set_log_axis(axes, levels)
    if numeric and len(levels) <= 8:
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
    held = ", the others as in the baseline" if report.one_at_a_time else ""
    axes.set(title=f"{report.metric} against {report.short[axis]}{held}", xlabel=axis, ylabel=axis_label(report.metric))
    entries: dict[str, Any] = {key: colour for key, colour in colours.items() if key and not report.one_at_a_time}
    entries = add_others_entry(entries, len(lines) - len(colours), GREY)
    if report.baseline in rows.index and not at_random:
        entries["baseline"] = legend_marker("o", "black", ms=9, mfc="none")
    there = rows[list(map(is_finite, rows["reference"]))] if "reference" in rows and numeric else rows[:0]
    if len(there):
        axes.plot(there["x"], there["reference"], "x", color="black", ms=6)
        entries["reference"] = legend_marker("x", "black")
    add_legend(figure, entries)
    return figure


def _groups_by_values(report: Report, rows: pd.DataFrame, keys: list[str]) -> dict[str, pd.DataFrame]:
    """Split the groups by their values of `keys`, sorted by these values."""
    values = {name: [rows[key][name] for key in keys] for name in rows.index}
    held: dict[str, list[str]] = {}
    for name in sorted(values, key=lambda name: [(isinstance(x, str), x) for x in values[name]]):
        each = {key: f"{x:g}" if isinstance(x, float) else x for key, x in zip(keys, values[name], strict=True)}
        words = " ".join(f"{report.short[key]}={x}" for key, x in each.items())
        held.setdefault(words, []).append(name)
    return {words: rows.loc[names] for words, names in held.items()}


def _by_cost(report: Report, column: str, colours: Colours) -> Figure | None:
    """Plot the loss against a cost of the groups, a key of `COSTS`; None if they cost about the same."""
    rows = report.groups[report.groups["mean"].notna()]
    costs = rows[column].astype(float)
    if len(rows) < 2 or not costs.min() > 0 or costs.max() < 1.1 * costs.min():
        return None
    name, (size, word) = COSTS[column], (1.0, "")
    if column == "seconds":
        units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        size, word = next((each for each in units if costs.max() > 2 * each[0]), units[-1])
    figure, (axes,) = make_panels(6, 3.8)
    for label in reversed(rows.index):
        y, half = rows["mean"][label], rows["mean"][label] - rows["low"][label]
        above = 3 if label in colours else 2
        draw_error_bars(axes, costs[label] / size, y, half, "o", color=colours.get(label, GREY), zorder=above)
    if costs.max() > 3 * costs.min():
        set_log_axis(axes, costs / size)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact_number(x)))
    axes.set(title=f"{report.metric} against {name}", xlabel=f"{name} ({word})" if word else name)
    axes.set_ylabel(axis_label(report.metric))
    entries = {label: legend_marker("o", colour) for label, colour in colours.items() if label in rows.index}
    add_legend(figure, add_others_entry(entries, len(rows) - len(entries), legend_marker("o", GREY)))
    return figure


def _size(report: Report) -> Figure | None:
    """Plot the curves of the smallest and the largest model, with their gaps; None if their sizes are alike.

    None, too, where nats per token do not compare the runs: a gap is in that unit.
    """
    if report.curve != NATS:
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
    axes.set(ylim=(shown.min() - room, shown.max() + room), xlabel="steps", ylabel="loss (nats per token)")
    axes.set_title("the smallest and the largest model (train/loss: mean since the validation before)")
    add_legend(figure, entries)
    return figure
