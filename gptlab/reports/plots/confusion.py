"""Plot the confusion matrices of classifiers: the best groups, each over all of its seeds."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from gptlab.reports.confusion import Confusion
from gptlab.reports.number_words import compact_number
from gptlab.reports.plots.style import make_panels, shorten_label
from gptlab.reports.report import Report

MAX_PANELS = 4
MAX_NUMBERS = 12  # classes, above which cells show colours alone


def draw_confusion(report: Report) -> Figure | None:
    """Plot the confusion matrices of up to four groups, the best first; None if no run has one."""
    found = [(name, each) for name in report.best_first.index for each in report.confusions.get(name, ())]
    if not found:
        return None
    shown = found[:MAX_PANELS]
    side = 0.6 * min(MAX_NUMBERS, max(3, *(len(each.labels) for _, each in shown)))
    figure, panels = make_panels((side + 1.2) * len(shown) + 0.8, side + 1.9, len(shown))
    for axes, (name, each) in zip(panels, shown, strict=True):
        image = _draw_matrix(axes, each)
        words = f"{each.accuracy:.1%} of {compact_number(int(each.counts.sum()))} right"
        axes.set_title(f"{shorten_label(str(name))} (n = {report.groups['n'][name]})\n{words}")
    panels[0].set_ylabel("true class")
    bar = figure.colorbar(image, ax=panels, shrink=0.8, format=lambda share, _: f"{share:.0%}")
    bar.set_label("share of the true class")
    which = f", the best {len(shown)} of {len(found)}" if len(found) > len(shown) else ""
    figure.suptitle(f"confusion: counts, added up over n seeds{which}", fontsize=9)
    return figure


def _draw_matrix(axes: Axes, confusion: Confusion) -> AxesImage:
    """Draw one matrix: colours are shares of each row, numbers are counts; returns what a colour bar needs."""
    counts, labels = confusion.counts, [shorten_label(label) for label in confusion.labels]
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    slanted = max(map(len, labels)) * len(labels) > 24
    axes.set_xticks(range(len(labels)), labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted class")
    axes.grid(visible=False)
    if len(labels) <= MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, compact_number(int(count)), ha="center", va="center", color=colour)
    return image
