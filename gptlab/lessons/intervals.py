"""`python -m gptlab.lessons.intervals N --seeds 1 2 3 4 5`: run a chapter for several seeds, for the intervals.

The interval is the one in which the number of one more run lies, with a probability of 99% if runs differ by their
seeds alone: mean +- t s sqrt(1 + 1/n), s being the standard deviation of n runs, t Student's for n - 1 degrees of
freedom; 5.04 s for five seeds, 11.5 s for three. The commands run in outputs/lessons-seeds/<S>.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gptlab.lessons.chapters import find_lesson
from gptlab.lessons.lesson import Lesson
from gptlab.lessons.runner import Measured, run_lesson
from gptlab.system.errors import UserError, command_line


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("chapter", metavar="N")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="S", help="(default: 1 to 5)")
    p.add_argument("--confidence", type=float, default=0.99, metavar="P", help="(default: 0.99)")
    args = p.parse_args()
    with command_line():
        show_intervals(args.chapter, args.seeds, args.confidence)


def run_seed(lesson: Lesson, seed: int) -> list[Measured]:
    """Run a chapter for a seed, in a folder of its own."""
    folder, here = Path("outputs", "lessons-seeds", str(seed)), Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        return run_lesson(lesson, seed)
    finally:
        os.chdir(here)


def show_intervals(chapter: str, seeds: list[int], confidence: float) -> None:
    """Run a chapter for each seed, and print a line for each of its numbers.

    Raises:
        UserError: there is no such chapter, fewer than three different seeds, or a command fails.
    """
    from gptlab.reports.statistics import prediction_interval

    lesson = find_lesson(chapter)
    if len({*seeds}) < 3:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give at least three different ones")
    if not 0 < confidence < 1:
        raise UserError(f"--confidence {confidence:g}: must be between 0 and 1")
    runs = [run_seed(lesson, seed) for seed in seeds]
    for measured in zip(*runs, strict=True):
        values = [each.value for each in measured]
        low, high = prediction_interval(values, confidence)
        mean = sum(values) / len(values)
        print(f"{measured[0].expected.name}: {mean:.5g}, {low:.5g} to {high:.5g}; seeds: {values}")


if __name__ == "__main__":
    main()
