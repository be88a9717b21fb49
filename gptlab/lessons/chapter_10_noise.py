"""Chapter 10: is it noise? Five seeds of each model, intervals, paired differences, and how many seeds are enough.

`python -m gptlab.lessons.chapter_10_noise DIR` says how many seeds it takes to tell a small difference.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Read, Value
from gptlab.system.arguments import some_path
from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptlab.reports.report import Report

SWEEP = "ablations"
GROUPS = {
    "n_head=1": "1 head",
    "n_head=2": "2 heads",
    "baseline": "4 heads,\n1 layer",
    "n_head=8": "8 heads",
    "n_layer=2": "2 layers",
}
"""The groups of the sweep, and what the picture calls them."""
CLAIMED = 0.003  # nats, between two runs of one model in the lessons' tables
MOST = 100_000  # seeds


def seeds_needed(spread: float, difference: float) -> int:
    """Return how many seeds of two models it takes to find a true difference four times in five.

    Args:
        spread: the standard deviation of the differences, seed by seed.
        difference: the true one, of the means.

    Raises:
        UserError: it takes more than MOST, or a number is not above 0.
    """
    from gptlab.reports.statistics import pairs_needed

    if not (0 < spread < math.inf and 0 < difference < math.inf):
        raise UserError(f"--spread {spread:g} --difference {difference:g}: both must be above 0")
    found = pairs_needed(spread, difference, most=MOST)
    if found is None:
        raise UserError(f"--spread {spread:g} --difference {difference:g}: that takes more than {MOST:,} seeds")
    return found


def report_of(folder: Path) -> Report:
    """Return the report on the sweep.

    Raises:
        UserError: there is none.
    """
    from gptlab.reports.report import build_report

    return build_report([folder / SWEEP], sort="n")


def losses_of(folder: Path, group: str) -> dict[int, float]:
    """Return the val/loss of each run of a group, by seed.

    Raises:
        UserError: there is no such run.
    """
    runs = report_of(folder).runs
    mine = runs[runs["group"] == group].sort_values("seed")
    if mine.empty:
        raise UserError(
            f"{folder / SWEEP}: there is no run of {group}; run the chapter first: python -m gptlab.lesson 10"
        )
    return dict(zip(mine["seed"], mine["val/loss"], strict=True))


def mean_of(group: str) -> Read:
    return lambda folder: statistics.mean(losses_of(folder, group).values())


def spread_of(group: str) -> Read:
    return lambda folder: statistics.stdev(losses_of(folder, group).values())


def difference_of(group: str) -> Read:
    """Return what computes the mean of a group minus that of the baseline."""
    return lambda folder: mean_of(group)(folder) - mean_of("baseline")(folder)


def spread_of_pairs(group: str) -> Read:
    """Return what computes the standard deviation of the differences from the baseline, seed by seed."""

    def read(folder: Path) -> float:
        base, losses = losses_of(folder, "baseline"), losses_of(folder, group)
        return statistics.stdev(losses[seed] - base[seed] for seed in losses if seed in base)

    return read


def draw(folder: Path) -> Figure:
    """Draw every seed of every model with the interval of the mean, and how an interval narrows with more seeds."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from gptlab.reports.plots.style import COLOURS, DARK, GREY
    from gptlab.reports.statistics import half_width_at

    report = report_of(folder)
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    losses = {group: losses_of(folder, group) for group in GROUPS}
    left.plot([list(each.values()) for each in losses.values()], color=GREY, lw=0.8, zorder=0)  # a line a seed
    for place, group in enumerate(GROUPS):
        row = report.groups.loc[group]
        left.plot([place] * len(losses[group]), [*losses[group].values()], "o", ms=3.5, color=COLOURS[place])
        half = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        left.errorbar(place + 0.3, row["mean"], half, fmt="_", ms=9, capsize=3, color=COLOURS[place])
    left.set_xticks(range(len(GROUPS)), GROUPS.values())
    left.set(ylabel="val/loss, nats per token", title="each seed a line; beside it the 95% interval of the mean")
    left.grid(visible=False, axis="x")
    counts = np.unique(np.geomspace(2, 1000, 60).round())
    for group, colour in (("n_head=1", COLOURS[0]), ("n_head=8", COLOURS[3])):
        words = f"{GROUPS[group]} minus 4 heads"
        right.plot(counts, half_width_at(spread_of_pairs(group)(folder), counts), color=colour, label=words)
    right.axhline(CLAIMED, color=DARK, ls="--", lw=1, label=f"{CLAIMED:g}")
    right.set(xscale="log", yscale="log", xlabel="seeds of each", ylabel="half the interval's width, nats")
    right.set(title="how an interval narrows")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    right.legend(frameon=False)
    return figure


LESSON = Lesson(
    number=10,
    name="noise",
    title="Is it noise? Seeds, intervals, and the ablations",
    minutes=4,
    commands=(
        "python -m gptlab.train -m experiment=speedrun_cpu model.n_embd=64 model.n_head=4,1,2,8 model.n_layer=1,2 "
        "seed=1,2,3,4,5 sweep.method=one_at_a_time sweep.dir=outputs/lessons/10/ablations",
        "python -m gptlab.report outputs/lessons/10/ablations --sort n_head",
        "python -m gptlab.lessons.chapter_10_noise outputs/lessons/10 --difference 0.003",
    ),
    expected=(
        Expected("4 heads, 1 layer: mean of five seeds", mean_of("baseline"), 1.91, 1.98),
        Expected("standard deviation over its seeds", spread_of("baseline"), 0.002, 0.051),
        Expected("1 head minus 4, mean of five", difference_of("n_head=1"), -0.027, 0.023),
        Expected("2 heads minus 4, mean of five", difference_of("n_head=2"), -0.026, 0.022),
        Expected("8 heads minus 4, mean of five", difference_of("n_head=8"), -0.006, 0.017),
        Expected("2 layers minus 1, mean of five", difference_of("n_layer=2"), -0.068, -0.005),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "The differences of two models, seed by seed, have a standard deviation of 0.004. How many seeds of each "
            "does it take to find a difference of 0.003 four times in five?",
            Value(lambda folder: float(seeds_needed(0.004, CLAIMED)), 0),
            "`python -m gptlab.lessons.chapter_10_noise --spread 0.004 --difference 0.003` computes it.",
            "(2.8 x 0.004 / 0.003)² is 14, and Student's t for so few seeds adds two.",
        ),
        Exercise(
            "You compare five models with a baseline, and none of them is better. How probable is it that at least one "
            "p is below 0.05, if the five tests do not depend on each other?",
            Value(1 - 0.95**5, 0.005),
            "It is 1 minus the probability that all five are above.",
            "1 - 0.95^5 = 0.23. Who tries many things finds one that looks better: test it again with new seeds.",
        ),
        Exercise(
            "Why does the report compare seed by seed, where both models have the same seeds?",
            Choice(
                {
                    "a": "a seed that is kind to one model may be kind to the other, and the difference then has "
                    "less noise",
                    "b": "otherwise the seeds must be equally many",
                    "c": "it makes the difference larger",
                },
                "a",
            ),
            "What does a seed decide beside the weights at the beginning?",
            "Both models see the same batches in the same order. What that does to both falls out of the difference; "
            "how much it is you see by comparing the two widths.",
        ),
    ),
)


def main() -> None:
    """Say how many seeds it takes to tell a difference: of each model of the sweep, or at a given spread."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR", nargs="?", type=some_path, help="the folder of the chapter's outputs")
    p.add_argument("--spread", type=float, help="in its place: a standard deviation of differences, seed by seed")
    p.add_argument("--difference", type=float, default=CLAIMED, help=f"to be told (default: {CLAIMED:g})")
    args = p.parse_args()
    if (args.folder is None) == (args.spread is None):
        p.error("give the folder of the outputs, or --spread")
    with command_line():
        spreads = {"given": args.spread}
        if args.folder is not None:
            spreads = {group: spread_of_pairs(group)(args.folder) for group in GROUPS if group != "baseline"}
        for group, spread in spreads.items():
            count = seeds_needed(spread, args.difference)
            print(f"{group}: differences spread by {spread:.4f}; {count} seeds of each find one of {args.difference:g}")
        print("in 80% of all cases, by a paired t-test at 5%")


if __name__ == "__main__":
    main()
