"""Chapter 8: small against large: the larger model learns more of the text, and more that is true of this text alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Read, Value
from gptlab.lessons.outputs import finished, of_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {"small": "small", "large": "large", "large-little": "large, a third of the text"}
"""The folders, and what the picture calls them."""


def gap(run: str) -> Read:
    """Return what computes val/loss minus train/loss at the end of a run."""
    return lambda folder: of_summary(run, "val/loss")(folder) - of_summary(run, "train/loss")(folder)


def below_small(folder: Path) -> float:
    """Return by how much the large model's val/loss is below the small one's."""
    return of_summary("small", "val/loss")(folder) - of_summary("large", "val/loss")(folder)


def rise(folder: Path) -> float:
    """Return by how much val/loss ends above its lowest, of the large model on little text."""
    return of_summary("large-little", "val/loss")(folder) - of_summary("large-little", "best_val_loss")(folder)


def best_step(folder: Path) -> float:
    """Return the step at which val/loss was lowest, of the large model on little text."""
    return of_summary("large-little", "best_step")(folder)


def draw(folder: Path) -> Figure:
    """Draw both losses of each run by steps."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS
    from gptlab.reports.records import read_curves

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    panels = {"small": left, "large": left, "large-little": right}
    for colour, (run, axes) in zip(COLOURS, panels.items(), strict=False):
        finished(folder / run)
        curves = read_curves(folder / run)
        for key, style in (("val/loss", "-"), ("train/loss", "--")):
            curve = curves[key].dropna()
            words = f"{RUNS[run]}: {key}"
            axes.plot(curve.index, curve, style, color=colour, marker="o", ms=3, label=words)
    lowest = best_step(folder)
    right.axvline(lowest, color=COLOURS[2], lw=1, ls=":")
    left.set(xlabel="step", ylabel="nats per character", title="the same text, two sizes")
    right.set(xlabel="step", title="less text: the lowest val/loss lies before the end")
    for axes in (left, right):
        axes.legend(frameon=False)
    return figure


TRAIN = "python -m gptlab.train experiment=speedrun_cpu"
WITH = "trainer.max_steps=300 trainer.val_every=50 trainer.log_every=50"

LESSON = Lesson(
    number=8,
    name="size",
    title="Small against large: bias and variance",
    minutes=3,
    commands=(
        f"{TRAIN} model.n_embd=32 data.overfit_batches=120 {WITH} hydra.run.dir=outputs/lessons/8/small",
        f"{TRAIN} model.n_layer=2 data.overfit_batches=120 {WITH} hydra.run.dir=outputs/lessons/8/large",
        f"{TRAIN} model.n_layer=2 data.overfit_batches=40 {WITH} hydra.run.dir=outputs/lessons/8/large-little",
    ),
    expected=(
        Expected("small: val/loss", of_summary("small", "val/loss"), 1, 3),
        Expected("large: val/loss", of_summary("large", "val/loss"), 1, 3),
        Expected("small: gap to train/loss", gap("small"), 0, 1),
        Expected("large: gap to train/loss", gap("large"), 0, 1),
        Expected("large, a third of the text: val/loss", of_summary("large-little", "val/loss"), 1, 3),
        Expected("large, a third of the text: its rise from the lowest", rise, 0, 1),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many parameters has the large model for each of the small one's? Read both first lines.",
            Value(lambda folder: of_summary("large", "parameters")(folder) / of_summary("small", "parameters")(folder), 1),
            "A run says how many parameters it has before its first step.",
            "0.4 million and 17 thousand: the blocks grow with the square of the width.",
        ),
        Exercise(
            "On little text, after how many steps should the large model have been stopped?",
            Value(best_step, 0),
            "Look for the lowest val/loss in what the third run prints every 50 steps.",
            "After it the model learns by heart. trainer.patience=1 stops a run there; the best checkpoint is kept anyway.",
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
