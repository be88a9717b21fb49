"""Plot a frontier: reward against the divergence from the reference, with the best of n as what costs no training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gptlab.reports.frontier import CHOSEN_BY, Frontier
from gptlab.reports.plots.style import (
    COLOURS,
    DARK,
    SEEDS_FOR_BAND,
    STYLE,
    add_legend,
    legend_marker,
    make_panels,
    save_figure,
)

MARKERS = "osD^vP<X>*"  # of the groups of a task
LINES = {"reward": "--", "judged_reward": ":"}  # of the best of n, by what it is chosen by


def draw_frontier(frontier: Frontier) -> Figure:
    """Plot the groups, the best of n, the reference and the way of each run; in a second panel the judged reward.

    A group that a reward model has judged is hollow there: where its judged reward rises and the other falls, it has
    learnt what pleases the judge.
    """
    points = frontier.points
    judged = "judged_reward" in points and _differs(points)
    figure, panels = make_panels(9.5 if judged else 6.5, 4.2, 2 if judged else 1)
    looks = _looks(points)
    entries: dict[str, Any] = {}
    for axes, key in zip(panels, ("reward", "judged_reward"), strict=False):
        _draw_paths(axes, frontier, key, looks)
    for name, row in zip(points.index, points.to_dict("records"), strict=True):
        colour, marker = looks[str(name)]
        _draw_point(panels[0], row, "reward", colour, marker)
        if judged:
            _draw_point(panels[1], row, "judged_reward", colour, marker, mfc="white")
        label = str(name) if row["task"] in str(name) else f"{row['task']}: {name}"
        entries[label] = legend_marker(marker, colour)
    if any(frontier.paths.values()):
        entries["thin: training, on the validation part"] = Line2D([], [], color=DARK, lw=0.6)
    _draw_best_of_n(panels[0], frontier.best_of_n, entries)
    gold = "gold reward" if frontier.metric.endswith("/reward") else frontier.metric
    panels[0].set(title=f"{gold} against KL", ylabel=frontier.metric)
    if judged:
        panels[1].set(
            title="reward by the reward model against KL", ylabel=frontier.metric.replace("reward", "judged_reward")
        )
    for axes in panels:
        axes.set_xlabel("KL to the reference (nats per answer)")
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
    seeds = sorted({int(n) for n in points["n"]})
    if max(seeds) > 1:
        figure.suptitle(f"mean over seeds (n = {', '.join(map(str, seeds))}) with 95% intervals", fontsize=9)
    add_legend(figure, entries)
    return figure


def write_frontier(frontier: Frontier, folder: Path) -> list[str]:
    """Write frontier.png and .svg; returns their name.

    Raises:
        UserError: the folder cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        save_figure(draw_frontier(frontier), folder, "frontier")
    return ["frontier"]


def _differs(points: pd.DataFrame) -> bool:
    """Return whether some group's judged reward is known and another number than its reward."""
    both = points[["reward", "judged_reward"]].dropna()
    return not np.allclose(both["reward"], both["judged_reward"], rtol=1e-9, atol=0)


def _looks(points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return the colour, which is its task's, and the marker of each group."""
    tasks = {task: [str(name) for name in part.index] for task, part in points.groupby("task", sort=True)}
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[j % len(MARKERS)])
        for i, names in enumerate(tasks.values())
        for j, name in enumerate(sorted(names))
    }


def _draw_point(axes: Axes, row: Mapping[Any, Any], key: str, colour: str, marker: str, **how: Any) -> None:
    if not np.isfinite(row[key]):
        return
    bars = np.nan_to_num([[row["kl_half"]], [row[f"{key}_half"]]])
    style: Any = {"ms": 6, "capsize": 2, "lw": 1.0, "mew": 1.0, "zorder": 4} | how
    axes.errorbar(row["kl"], row[key], xerr=bars[0], yerr=bars[1], fmt=marker, color=colour, **style)


def _draw_best_of_n(axes: Axes, best: pd.DataFrame, entries: dict[str, Any]) -> None:
    """Draw the curves of the best of n with their bands, each n beside its point; n = 1 is the reference itself."""
    for by, curve in best.groupby("chosen_by", sort=False) if len(best) else ():
        line = LINES[str(by)]
        axes.plot(curve["kl"], curve["reward"], color=DARK, ls=line, marker=".", lw=1.0, zorder=3)
        entries[f"best of n{CHOSEN_BY[str(by)]}, of the reference"] = legend_marker(".", DARK, ls=line, lw=1.0)
        if curve["measurements"].iloc[0] >= SEEDS_FOR_BAND:
            band = curve["reward"] - curve["reward_half"], curve["reward"] + curve["reward_half"]
            axes.fill_between(curve["kl"], *band, color=DARK, alpha=0.15, lw=0)
        for n, kl, reward in zip(curve["n"], curve["kl"], curve["reward"], strict=True):
            if n > 1:
                beside: dict[str, Any] = {"xytext": (4, -7), "textcoords": "offset points", "fontsize": 7}
                axes.annotate(str(n), (kl, reward), color=DARK, **beside)
    first = best[best["n"] == 1] if len(best) else best
    if len(first):
        axes.plot(0, first["reward"].iloc[0], "*", color="black", ms=10, zorder=5, clip_on=False)
        entries["the reference"] = legend_marker("*", "black", ms=9)


def _draw_paths(axes: Axes, frontier: Frontier, key: str, looks: dict[str, tuple[str, str]]) -> None:
    for name, paths in frontier.paths.items():
        for path in paths:
            axes.plot(path["kl"], path[key], color=looks[name][0], lw=0.6, alpha=0.7, zorder=2)
