"""A report in pictures: curves, loss against what was swept and against cost, and a small model beside a large one."""

from __future__ import annotations

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

from gptlab.reports.records import metrics
from gptlab.reports.report import Report, compact, known
from gptlab.reports.statistics import half_width
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
MOST_ROWS = 50  # of the plot with a row a group
MOST_LETTERS = 48  # of a label

Colours = dict[str, str]  # by label, of the groups that stand out; the others are grey


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """The plots that say something about these runs, by the names of their files."""
    colours = standing_out(report)
    drawn: list[tuple[str, Figure | None]] = [
        ("curves", _curves(report, colours)),
        ("losses", _losses(report)),
        *(("by_" + re.sub(r"[^\w.-]", "_", report.short[axis]), _by_axis(report, axis)) for axis in report.axes),
        *((column, _by_cost(report, column, colours)) for column in COSTS),
        ("size", _size(report)),
    ]
    yield from ((name, figure) for name, figure in drawn if figure is not None)


def write(report: Report, folder: Path) -> list[str]:
    """Every plot as PNG and SVG; returns their names.

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


# What plots share


def standing_out(report: Report) -> Colours:
    """A colour each for up to eight groups; of more, for the best, the baseline and the worst."""
    names = [str(name) for name in report.groups.sort_values("mean").index]
    if len(names) > len(COLOURS):
        best, worst = names[:4], names[-3:]
        names = list(dict.fromkeys([*best, *([report.baseline] if report.baseline else []), *worst]))
    (axis,) = report.axes if len(report.axes) == 1 else (None,)
    if axis and len(names) == len(report.groups) and all(map(known, report.groups[axis])):
        names.sort(key=lambda name: report.groups[axis][name])
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
        return {name: matplotlib.colors.to_hex(shade) for name, shade in zip(names, shades, strict=True)}
    return dict(zip(names, COLOURS, strict=False))


def curve(report: Report, group: str) -> pd.DataFrame:
    """The means over a group's runs at the validated steps that they share, by step: val, its half interval, train.

    train/loss is the mean since the validation before, which smooths it. Empty where no run has left its curve.
    """
    both = []
    for run_dir in report.runs[report.runs["group"] == group]["run"]:
        frame = metrics(Path(run_dir))
        if not {"train/loss", "val/loss"} <= set(frame):
            continue
        val, train = (frame[column].dropna().groupby(level=0).last() for column in ("val/loss", "train/loss"))
        if len(val) > 1:
            place = np.minimum(val.index.searchsorted(train.index), len(val) - 1)
            both.append(pd.DataFrame({"val": val, "train": train.groupby(val.index[place]).mean()}))
    if not both:
        return pd.DataFrame()
    shared = pd.concat(both, axis=1, join="inner", keys=range(len(both)))
    val, train = (shared.xs(which, axis=1, level=1).to_numpy().T for which in ("val", "train"))
    return pd.DataFrame({"val": val.mean(0), "half": half_width(val), "train": train.mean(0)}, index=shared.index)


def unit(metric: str) -> str:
    kind = metric.rpartition("/")[2]
    known_units = {"loss": "nats per token", "best_val_loss": "nats per token", "bpb": "bits per byte"}
    return f"{metric} ({known_units[kind]})" if kind in known_units else metric


def cut(label: str) -> str:
    """A label that leaves room for the plot; what tells long ones apart may be at either end."""
    half = MOST_LETTERS // 2
    return label if len(label) <= MOST_LETTERS else f"{label[:half]}…{label[-half:]}"


def with_others(entries: dict[str, Any], count: int, entry: Any) -> dict[str, Any]:
    """Entries of a legend, and one for those that have no colour of their own."""
    return entries | ({f"{count} other{'s' * (count > 1)}": entry} if count else {})


def panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def marks(shape: str, colour: Any, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=shape, **{"ls": "", "ms": 5.0, "lw": 1.2, **style})


def bars(axes: Axes, x: Any, y: Any, half: Any, style: str, **how: Any) -> None:
    """Points with their intervals, where these are known."""
    axes.errorbar(x, y, yerr=np.nan_to_num(half), fmt=style, **POINT, **how)


def legend(figure: Figure, entries: dict[str, Any]) -> None:
    """Below the plot, in as many columns as the labels leave room for; `entries` are colours or lines by label."""
    if not entries:
        return
    handles = [each if isinstance(each, Line2D) else Line2D([], [], color=each, lw=2) for each in entries.values()]
    names = list(map(cut, entries))
    columns = max(1, min(len(names), int(figure.get_figwidth() * 14 / (max(map(len, names)) + 7))))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(names) // columns))


def log_axis(axes: Axes, values: Sequence[Any]) -> None:
    """A logarithmic x axis, with ticks that can be read however short it is."""
    decades = np.log10(max(values) / min(values))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))


def geometric(values: Iterable[Any]) -> bool:
    """Whether the steps between the values are more alike as factors than as differences."""
    ordered = np.array(sorted(set(values)), dtype=float)
    if len(ordered) < 3 or ordered[0] <= 0:
        return False
    steps, factors = np.diff(ordered), np.diff(np.log(ordered))
    return bool(np.std(factors) / np.mean(factors) < np.std(steps) / np.mean(steps))


# The plots


def _curves(report: Report, colours: Colours) -> Figure | None:
    """val/loss with bands and train/loss dashed; beside it the second half of val/loss alone, where groups differ."""
    drawn = {name: each for name in colours if len(each := curve(report, name))}
    if not drawn:
        return None
    figure, (whole, end) = panels(9, 3.8, 2)
    for name, each in drawn.items():
        for axes, part in ((whole, each), (end, each[each.index >= each.index[-1] / 2])):
            axes.plot(part.index, part["val"], color=colours[name])
            band = part["val"] - part["half"], part["val"] + part["half"]
            axes.fill_between(part.index, *band, color=colours[name], alpha=0.2, lw=0)
        whole.plot(each.index, each["train"], color=colours[name], lw=0.8, ls="--")
    whole.set(
        title="val/loss (solid), train/loss since the validation before (dashed)",
        xlabel="steps",
        ylabel="loss (nats per token)",
    )
    end.set(title="val/loss, the second half", xlabel="steps", ylabel="val/loss (nats per token)")
    seeds = sorted({int(n) for n in report.groups["n"]})
    words = f"mean over seeds (n = {', '.join(map(str, seeds))}); band: its 95% interval" if max(seeds) > 1 else ""
    if len(colours) < len(report.groups):
        words = f"the best, the worst and the baseline of {len(report.groups)} groups{'; ' * bool(words)}{words}"
    if words:
        figure.suptitle(words, fontsize=9)
    legend(figure, {name: colours[name] for name in drawn})
    return figure


def _losses(report: Report) -> Figure | None:
    """A row a group, the best on top: its mean and interval, every seed, and the baseline as a line."""
    rows = report.groups[report.groups["mean"].notna()].sort_values("mean").head(MOST_ROWS)
    if len(rows) < 2:
        return None
    figure, (axes,) = panels(7, 1.1 + 0.2 * len(rows))
    place = {name: y for y, name in enumerate(rows.index)}
    seeds = report.runs[report.runs["group"].isin(place)]
    axes.plot(seeds[report.metric], seeds["group"].map(place), "o", color=DARK, ms=2.5, zorder=4)
    y, half = np.arange(len(rows)), np.nan_to_num(rows["mean"] - rows["low"])
    for those, colour in ((rows.index != report.baseline, COLOURS[0]), (rows.index == report.baseline, COLOURS[1])):
        axes.errorbar(rows["mean"][those], y[those], xerr=half[those], fmt="o", color=colour, **POINT)
    entries = {"mean and its 95% interval": marks("o", COLOURS[0], ls="-"), "one seed": marks("o", DARK, ms=2.5)}
    if report.baseline in place:
        axes.axvline(rows["mean"][report.baseline], color=COLOURS[1], lw=0.8, ls=":")
        entries["baseline"] = marks("o", COLOURS[1], ls=":")
    if "reference" in rows and (there := [(v, y) for y, v in enumerate(rows["reference"]) if known(v)]):
        axes.plot(*zip(*there, strict=True), "x", color="black", ms=5)
        entries["reference"] = marks("x", "black")
    axes.set_yticks(range(len(rows)), list(map(cut, rows.index)))
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=unit(report.metric))
    which = f", the best {len(rows)} of {len(report.groups)} groups" if len(rows) < len(report.groups) else ""
    axes.set_title(f"{report.metric}: mean over seeds{which}")
    legend(figure, entries)
    return figure


def _by_axis(report: Report, axis: str) -> Figure | None:
    """Loss against a swept key, a line for each choice of the others; None where another plot says the same."""
    rows = report.groups[report.groups["mean"].notna()]
    others = [each for each in report.axes if each != axis]
    numeric = all(map(known, rows[axis]))
    levels = sorted(set(rows[axis] if numeric else map(str, rows[axis])))
    if len(levels) < (3 if report.one_at_a_time else 2) or (not numeric and (report.one_at_a_time or not others)):
        return None
    rows = rows.assign(x=rows[axis] if numeric else [levels.index(str(each)) for each in rows[axis]]).sort_values("x")
    lines = {key: part for key, part in _held(report, rows, others).items() if len(part) > 1}
    # Hardly two groups share the other keys, as in a random search.
    at_random = not report.one_at_a_time and sum(map(len, lines.values())) < len(rows) / 2
    if at_random:
        lines = {"": rows}
    best = sorted(lines, key=lambda key: lines[key]["mean"].min())[: len(COLOURS)]
    colours = dict(zip((key for key in lines if key in best), COLOURS, strict=False))

    figure, (axes,) = panels(6, 3.8)
    for number, (key, part) in enumerate(lines.items()):
        x = part["x"] if numeric else part["x"] + 0.5 * ((number + 0.5) / len(lines) - 0.5)  # side by side
        colour, above = colours.get(key, GREY), 3 if key in colours else 2
        style = "o-" if numeric and not at_random else "o"
        bars(axes, x, part["mean"], part["mean"] - part["low"], style, color=colour, zorder=above)
        if report.baseline in part.index and not at_random:
            axes.plot(x[report.baseline], part["mean"][report.baseline], "o", ms=9, mfc="none", mec=colour)
    if not numeric:
        axes.set_xticks(range(len(levels)), [cut(str(level)) for level in levels])
        axes.set_xlim(-0.5, len(levels) - 0.5)
    elif geometric(levels):
        log_axis(axes, levels)
    if numeric and len(levels) <= 8:
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
    held = ", the others as in the baseline" if report.one_at_a_time else ""
    axes.set(title=f"{report.metric} against {report.short[axis]}{held}", xlabel=axis, ylabel=unit(report.metric))
    entries: dict[str, Any] = {key: colour for key, colour in colours.items() if key and not report.one_at_a_time}
    entries = with_others(entries, len(lines) - len(colours), GREY)
    if report.baseline in rows.index and not at_random:
        entries["baseline"] = marks("o", "black", ms=9, mfc="none")
    there = rows[list(map(known, rows["reference"]))] if "reference" in rows and numeric else rows[:0]
    if len(there):
        axes.plot(there["x"], there["reference"], "x", color="black", ms=6)
        entries["reference"] = marks("x", "black")
    legend(figure, entries)
    return figure


def _held(report: Report, rows: pd.DataFrame, keys: list[str]) -> dict[str, pd.DataFrame]:
    """The groups by what they have in `keys`, in the order of that."""
    values = {name: [rows[key][name] for key in keys] for name in rows.index}
    held: dict[str, list[str]] = {}
    for name in sorted(values, key=lambda name: [(isinstance(x, str), x) for x in values[name]]):
        each = {key: f"{x:g}" if isinstance(x, float) else x for key, x in zip(keys, values[name], strict=True)}
        words = " ".join(f"{report.short[key]}={x}" for key, x in each.items())
        held.setdefault(words, []).append(name)
    return {words: rows.loc[names] for words, names in held.items()}


def _by_cost(report: Report, column: str, colours: Colours) -> Figure | None:
    """Loss against what a group has cost."""
    rows = report.groups[report.groups["mean"].notna()]
    costs = rows[column].astype(float)
    if len(rows) < 2 or not costs.min() > 0 or costs.max() < 1.1 * costs.min():
        return None
    name, (size, word) = COSTS[column], (1.0, "")
    if column == "seconds":
        units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        size, word = next((each for each in units if costs.max() > 2 * each[0]), units[-1])
    figure, (axes,) = panels(6, 3.8)
    for label in reversed(rows.index):
        y, half = rows["mean"][label], rows["mean"][label] - rows["low"][label]
        above = 3 if label in colours else 2
        bars(axes, costs[label] / size, y, half, "o", color=colours.get(label, GREY), zorder=above)
    if costs.max() > 3 * costs.min():
        log_axis(axes, costs / size)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
    axes.set(title=f"{report.metric} against {name}", xlabel=f"{name} ({word})" if word else name)
    axes.set_ylabel(unit(report.metric))
    entries = {label: marks("o", colour) for label, colour in colours.items() if label in rows.index}
    legend(figure, with_others(entries, len(rows) - len(entries), marks("o", GREY)))
    return figure


def _size(report: Report) -> Figure | None:
    """The curves of the smallest and of the largest model: more parameters, a lower loss, a wider gap."""
    rows = report.groups[report.groups["mean"].notna()].sort_values(["parameters", "mean"])
    if len(rows) < 2 or rows["parameters"].iloc[-1] < 1.5 * rows["parameters"].iloc[0]:
        return None
    largest = rows[rows["parameters"] == rows["parameters"].iloc[-1]]
    names = (rows.index[0], largest.index[0])
    both = [curve(report, name) for name in names]
    if not all(map(len, both)):
        return None
    figure, (axes,) = panels(6.5, 4)
    entries: dict[str, Any] = {}
    after = []  # what is shown: not the first steps, beside which all else is flat
    for name, each, colour in zip(names, both, (COLOURS[1], COLOURS[0]), strict=True):
        for column, style in (("val", "-"), ("train", "--")):
            (line,) = axes.plot(each.index, each[column], style, color=colour)
            entries[f"{cut(name)}, {compact(rows['parameters'][name])} parameters: {column}/loss"] = line
        step, val, train = each.index[-1], each["val"].iloc[-1], each["train"].iloc[-1]
        arrow = {"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (step, val), (step, train), arrowprops=arrow)
        lift = 7 if name == names[0] else -7  # points: the two gaps may be alike
        beside: dict[str, Any] = {"xytext": (6, lift), "textcoords": "offset points", "va": "center"}
        axes.annotate(
            f"gap {val - train:.2f}", (step, (val + train) / 2), color=colour, annotation_clip=False, **beside
        )
        after.append(each.loc[each.index > 0.1 * step, ["val", "train"]].to_numpy())
    shown = np.ma.masked_invalid(np.concatenate(after))
    room = 0.05 * (shown.max() - shown.min())
    axes.set(ylim=(shown.min() - room, shown.max() + room), xlabel="steps", ylabel="loss (nats per token)")
    axes.set_title("the smallest and the largest model (train/loss: mean since the validation before)")
    legend(figure, entries)
    return figure
