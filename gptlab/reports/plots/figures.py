"""Plot a report: every figure that its runs have enough data for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gptlab.reports.number_words import is_finite
from gptlab.reports.plots.confusion import draw_confusion
from gptlab.reports.plots.curves import draw_curves, draw_size
from gptlab.reports.plots.groups import COSTS, draw_by_axis, draw_by_cost, draw_groups
from gptlab.reports.plots.style import COLOURS, STYLE, Colours, save_figure
from gptlab.reports.report import Report


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield the plots that these runs have enough data for, each with the name of its file."""
    colours = group_colours(report)
    drawn: list[tuple[str, Figure | None]] = [
        ("curves", draw_curves(report, colours)),
        ("losses", draw_groups(report)),
        *(("by_" + re.sub(r"[^\w.-]", "_", report.short[axis]), draw_by_axis(report, axis)) for axis in report.axes),
        *((column, draw_by_cost(report, column, colours)) for column in COSTS),
        ("size", draw_size(report)),
        ("confusion", draw_confusion(report)),
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
            save_figure(figure, folder, name)
            names.append(name)
    return names


def group_colours(report: Report) -> Colours:
    """Assign a colour to each of up to eight groups; of more groups, to the best, the baseline and the worst."""
    names = [str(name) for name in report.best_first.index]
    if len(names) > len(COLOURS):
        best, worst = names[:4], names[-3:]
        names = list(dict.fromkeys([*best, *([report.baseline] if report.baseline else []), *worst]))
    (axis,) = report.axes if len(report.axes) == 1 else (None,)
    if axis and len(names) == len(report.groups) and all(map(is_finite, report.groups[axis])):
        names.sort(key=lambda name: report.groups[axis][name])
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
        return {name: matplotlib.colors.to_hex(shade) for name, shade in zip(names, shades, strict=True)}
    return dict(zip(names, COLOURS, strict=False))
