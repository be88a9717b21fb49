"""What all plots share: the style, the colours, panels, markers, legends and axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gptlab.reports.number_words import compact_number
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
MAX_LETTERS = 48  # of a label
SEEDS_FOR_BAND = 3  # the t-interval of two seeds is 9 standard deviations wide to each side and would fill the plot

Colours = dict[str, str]  # by label, of the groups with a colour; the others are grey


def shorten_label(label: str) -> str:
    """Shorten a label in its middle, since long labels may differ at either end."""
    half = MAX_LETTERS // 2
    return label if len(label) <= MAX_LETTERS else f"{label[:half]}…{label[-half:]}"


def add_others_entry(entries: dict[str, Any], count: int, entry: Any) -> dict[str, Any]:
    """Return the entries of a legend, with one more for `count` groups that have no colour of their own."""
    return entries | ({f"{count} other{'s' * (count > 1)}": entry} if count else {})


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / f"{name}.png", partial(figure.savefig, format="png"))
    write_atomically(folder / f"{name}.svg", partial(figure.savefig, format="svg", metadata={"Date": None}))


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
