"""Plot the groups of a report: each with its seeds, against each swept key, and against each cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gptlab.reports.number_words import compact_number, is_finite
from gptlab.reports.plots.style import (
    COLOURS,
    DARK,
    GREY,
    POINT,
    Colours,
    add_legend,
    add_others_entry,
    draw_error_bars,
    is_geometric,
    legend_marker,
    make_panels,
    set_log_axis,
    shorten_label,
)
from gptlab.reports.report import Report
from gptlab.reports.units import axis_label

COSTS = {"parameters": "parameters", "flops": "training FLOPs", "seconds": "training time"}
MAX_ROWS = 50  # groups in the plot of losses


def draw_groups(report: Report) -> Figure | None:
    """Plot each group in a row, the best on top: its mean and interval and every seed; the baseline is a line."""
    rows = report.best_first.dropna(subset="mean").head(MAX_ROWS)
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
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=axis_label(report.metric, report.tasks))
    which = f", the best {len(rows)} of {len(report.groups)} groups" if len(rows) < len(report.groups) else ""
    axes.set_title(f"{report.metric}: mean over seeds{which}")
    add_legend(figure, entries)
    return figure


def draw_by_axis(report: Report, axis: str) -> Figure | None:
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
    place = {name: number for number, name in enumerate(report.best_first.index)}
    best = sorted(lines, key=lambda key: min(map(place.__getitem__, lines[key].index)))[: len(COLOURS)]
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
    axes.set(
        title=f"{report.metric} against {report.short[axis]}{held}",
        xlabel=axis,
        ylabel=axis_label(report.metric, report.tasks),
    )
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


def draw_by_cost(report: Report, column: str, colours: Colours) -> Figure | None:
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
    axes.set_ylabel(axis_label(report.metric, report.tasks))
    entries = {label: legend_marker("o", colour) for label, colour in colours.items() if label in rows.index}
    add_legend(figure, add_others_entry(entries, len(rows) - len(entries), legend_marker("o", GREY)))
    return figure
