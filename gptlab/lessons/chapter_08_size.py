"""Chapter 8: small against large: the larger model learns more of the text, and more that holds for this text alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Read, Value
from gptlab.lessons.outputs import finished, of_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {"small": "small", "large": "large", "large-little": "large, less text"}
"""The folders of the runs, and what the picture calls them."""


def gap(run: str) -> Read:
    """Return what computes val/loss minus train/loss at the end of a run."""
    return lambda folder: of_summary(run, "val/loss")(folder) - of_summary(run, "train/loss")(folder)


def rise(run: str) -> Read:
    """Return what computes by how much val/loss ends above its lowest."""
    return lambda folder: of_summary(run, "val/loss")(folder) - of_summary(run, "best_val_loss")(folder)


def below_small(folder: Path) -> float:
    """Return by how much the large model's val/loss is below the small one's at the end."""
    return of_summary("small", "val/loss")(folder) - of_summary("large", "val/loss")(folder)


def times_as_many(folder: Path) -> float:
    """Return how many parameters the large model has for each of the small one's."""
    return of_summary("large", "parameters")(folder) / of_summary("small", "parameters")(folder)


def draw(folder: Path) -> Figure:
    """Draw both losses of each run by steps: the two sizes on one text, and the large one on less of it."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS
    from gptlab.reports.records import read_curves

    figure = Figure(figsize=(7.6, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, run, axes in zip(COLOURS, RUNS, (left, left, right), strict=False):
        summary = finished(folder / run)
        curves = read_curves(folder / run)
        for key, style in (("val/loss", "-"), ("train/loss", "--")):
            curve = curves[key].dropna()
            axes.plot(curve.index, curve, style, color=colour, marker="o", ms=3, label=f"{RUNS[run]}: {key}")
        end = summary["steps"] * (1.12 if run == "small" else 1.05)
        ends = (summary["train/loss"], summary["val/loss"])
        axes.plot([end, end], ends, marker="_", ms=7, lw=1, color=colour)
        axes.text(end, sum(ends) / 2, f" {gap(run)(folder):.2f}", color=colour, va="center")
    lowest = finished(folder / "large-little")
    right.plot(lowest["best_step"], lowest["best_val_loss"], "o", ms=10, mfc="none", color=COLOURS[2])
    left.set(ylabel="nats per character", title="two sizes, one text")
    right.set(title="the large one on less text")
    for axes in (left, right):
        axes.set(xlabel="step", xlim=(None, 1.25 * lowest["steps"]))
        axes.legend(frameon=False)
    return figure


TRAIN = "python -m gptlab.train experiment=speedrun_cpu"
WITH = "trainer.max_steps=300 trainer.val_every=50 trainer.log_every=50"

LESSON = Lesson(
    number=8,
    name="size",
    title="Small against large: bias and variance",
    minutes=1,
    commands=(
        f"{TRAIN} model.n_embd=32 data.overfit_batches=150 {WITH} hydra.run.dir=outputs/lessons/8/small",
        f"{TRAIN} model.n_embd=128 data.overfit_batches=150 {WITH} hydra.run.dir=outputs/lessons/8/large",
        f"{TRAIN} model.n_embd=128 data.overfit_batches=60 {WITH} hydra.run.dir=outputs/lessons/8/large-little",
    ),
    expected=(
        Expected("small: val/loss", of_summary("small", "val/loss"), 1.94, 2.03),
        Expected("large: val/loss", of_summary("large", "val/loss"), 1.78, 1.92),
        Expected("large below small", below_small, 0.08, 0.19),
        Expected("small: gap to train/loss", gap("small"), 0.05, 0.12),
        Expected("large: gap to train/loss", gap("large"), 0.1, 0.28),
        Expected("large, less text: val/loss", of_summary("large-little", "val/loss"), 2, 2.22),
        Expected("large, less text: gap to train/loss", gap("large-little"), 0.68, 1),
        Expected("large, less text: rise from its lowest val/loss", rise("large-little"), 0.019, 0.051),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many parameters has the large model for each of the small one's? Read the first lines.",
            Value(times_as_many, 0.5),
            "A run says how many parameters it has before its first step.",
            "It is four times as wide, and the matrices of a block grow with the square of the width.",
        ),
        Exercise(
            "After how many steps should the large model on less text have been stopped?",
            Value(of_summary("large-little", "best_step"), 0),
            "Look for the lowest val/loss in what the third run prints every 50 steps.",
            "After it the model learns by heart. trainer.patience=1 ends a run there, and the best checkpoint is kept "
            "in any case.",
        ),
        Exercise(
            "Your model has a train/loss of 1.9 and a val/loss of 1.95. What is the first thing to try?",
            Choice({"a": "more dropout", "b": "a larger model", "c": "fewer steps"}, "b"),
            "Is it the gap that is large, or are both losses?",
            "Both losses are high and close together: the model has too few parameters for the text, or too few steps. "
            "More dropout and fewer steps help where the gap is large.",
        ),
    ),
)
