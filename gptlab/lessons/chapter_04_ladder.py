"""Chapter 4: the ladder of the build-a-GPT lessons, from a table to blocks with residuals and LayerNorm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Value
from gptlab.lessons.outputs import of_job

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptlab.lessons.lesson import Read

SWEEP = "ladder"
LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
RUNGS: dict[str, tuple[str, float | None]] = {  # what a rung is called here, and the lesson's loss, where it says one
    "ladder_1_bigram": ("bigram", 2.5),
    "ladder_2_head": ("one head", 2.4),
    "ladder_3_heads": ("four heads", 2.28),
    "ladder_4_feedforward": ("feed-forward", 2.24),
    "ladder_5_stacked": ("three blocks", None),
    "ladder_6_residual": ("residuals", 2.08),
    "ladder_7_layernorm": ("LayerNorm", 2.06),
}


def of_rung(rung: str, key: str = "val/loss") -> Read:
    """Return what reads a number of a rung's summary.json."""
    return of_job(SWEEP, {"experiment": rung}, key)


def draw(folder: Path) -> Figure:
    """Draw the loss of each rung in its interval, beside the lesson's."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS, DARK, GREY

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    losses = [of_rung(rung)(folder) for rung in RUNGS]
    lows, highs = zip(*((expected.low, expected.high) for expected in LESSON.expected), strict=True)
    axes.vlines(range(len(losses)), lows, highs, color=GREY, lw=8, alpha=0.6, label="expected")
    axes.plot(range(len(losses)), losses, "o-", color=COLOURS[0], label="here")
    for place, loss in enumerate(losses):
        axes.annotate(f"{loss:.2f}", (place, loss), (9, 4), textcoords="offset points", size=8, bbox=LABEL)
    theirs = [(place, loss) for place, (_, loss) in enumerate(RUNGS.values()) if loss is not None]
    axes.plot(*zip(*theirs, strict=True), "x", color=DARK, label="the lessons'")
    axes.set_xticks(range(len(RUNGS)), [name for name, _ in RUNGS.values()])
    axes.set(ylabel="val/loss, nats per character", xlim=(-0.4, len(RUNGS) - 0.5))
    axes.legend(frameon=False)
    return figure


LESSON = Lesson(
    number=4,
    name="ladder",
    title="The ladder: seven models, from 2.5 to 2.06",
    minutes=3.5,
    commands=("python -m gptlab.train sweep=ladder seed=1337 sweep.dir=outputs/lessons/4/ladder",),
    expected=(
        Expected("bigram", of_rung("ladder_1_bigram"), 2.47, 2.50),
        Expected("one head", of_rung("ladder_2_head"), 2.37, 2.44),
        Expected("four heads", of_rung("ladder_3_heads"), 2.20, 2.35),
        Expected("feed-forward", of_rung("ladder_4_feedforward"), 2.15, 2.35),
        Expected("three blocks, no residuals", of_rung("ladder_5_stacked"), 2.19, 2.46),
        Expected("residuals", of_rung("ladder_6_residual"), 2.01, 2.17),
        Expected("LayerNorm", of_rung("ladder_7_layernorm"), 2.02, 2.12),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "Which rung gains most over the one before it?",
            Choice({"a": "one head", "b": "four heads", "c": "residuals", "d": "LayerNorm"}, "c"),
            "Subtract each number of the table from the one above it.",
            "Residuals gain a quarter of a nat: only with them do three blocks learn more than one.",
        ),
        Exercise(
            "How many parameters has the last rung?",
            Value(of_rung("ladder_7_layernorm", "parameters"), 0),
            "summary.json in the folder of its run says it, under parameters.",
            "Three blocks of about 12,700, and embeddings and a head of 4,500.",
        ),
        Exercise(
            "Train the last rung with one block in place of three. What is its val/loss?",
            Value(2.15, 0.06),
            "The page has the command; its last lines begin with the number.",
            "2.13 to 2.16 for five seeds. Of the way from 2.25 to 2.07 half is the better block, the rest is depth.",
        ),
    ),
)
