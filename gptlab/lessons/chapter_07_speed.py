"""Chapter 7: speed: seconds to a loss are steps times seconds a step, and each can be made smaller by itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Exercise, Expected, Lesson, Read, Value
from gptlab.lessons.outputs import finished, of_json
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 1.9
"""The val/loss that is waited for."""


@dataclass(frozen=True)
class Rung:
    """One thing more than the rung before it has.

    Attributes:
        words: what the picture calls it.
        optimizer: the run whose steps it needs.
        choices: what `bench` measures, beside the experiment.
    """

    words: str
    optimizer: str
    choices: str

    def seconds_a_step(self, folder: Path, name: str) -> float:
        """Return the seconds that nine of ten steps exceed: the machine's, with little of what else runs on it."""
        return of_json(f"{name}.json", "sides", "gptlab", "step_seconds", "p10")(folder)

    def seconds(self, folder: Path, name: str) -> float:
        """Return the seconds to the goal, without what the compiler takes."""
        return steps_to_goal(self.optimizer)(folder) * self.seconds_a_step(folder, name)


ADAMW = "optim=adamw ~optim.adam_lr optim.lr=8e-3"
RUNGS = {
    "manual": Rung("AdamW, attention\nwritten out", "adamw", f"{ADAMW} model.attention=manual"),
    "sdpa": Rung("fused attention", "adamw", ADAMW),
    "muon": Rung("Muon", "muon", ""),
    "compiled": Rung("compiled", "muon", "compile=inductor"),
    "bf16": Rung("bf16", "muon", "compile=inductor precision=bf16"),
}


def steps_to_goal(run: str) -> Read:
    """Return what computes after how many steps val/loss is at the goal, on straight lines between validations."""

    def read(folder: Path) -> float:
        from gptlab.reports.records import read_curves

        finished(folder / run)
        curve = read_curves(folder / run)["val/loss"].dropna()
        points = [*zip(curve.index.tolist(), curve.tolist(), strict=True)]
        for (before, high), (step, low) in pairwise([points[0], *points]):
            if low <= GOAL:
                return float(step) if step == before else before + (step - before) * (high - GOAL) / (high - low)
        raise UserError(f"{folder / run}: val/loss does not come down to {GOAL:g}; the last is {points[-1][1]:.4f}")

    return read


def times_as_long(rung: str, other: str) -> Read:
    """Return what computes the seconds a step of a rung, as a multiple of those of another."""

    def read(folder: Path) -> float:
        return RUNGS[rung].seconds_a_step(folder, rung) / RUNGS[other].seconds_a_step(folder, other)

    return read


def more_steps(folder: Path) -> float:
    """Return how many steps AdamW takes for one of Muon's."""
    return steps_to_goal("adamw")(folder) / steps_to_goal("muon")(folder)


def seconds_saved(folder: Path) -> float:
    """Return how many times as long the first rung takes to the goal as the last."""
    return RUNGS["manual"].seconds(folder, "manual") / RUNGS["bf16"].seconds(folder, "bf16")


def draw(folder: Path) -> Figure:
    """Draw the two loss curves by steps, and for each rung the seconds to the goal."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS, DARK
    from gptlab.reports.records import read_curves

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (run, words) in zip(COLOURS, (("adamw", "AdamW"), ("muon", "Muon")), strict=False):
        curve = read_curves(folder / run)["val/loss"].dropna()
        left.plot(curve.index, curve, marker="o", ms=3, color=colour, label=words)
        left.plot(steps_to_goal(run)(folder), GOAL, "x", color=colour, ms=8)
    left.axhline(GOAL, color=DARK, lw=0.8, ls=":")
    left.set(xlabel="step", ylabel="val/loss, nats per character", title=f"how many steps to {GOAL:g}", ylim=(1.8, 2.6))
    left.legend(frameon=False)
    seconds = [rung.seconds(folder, name) for name, rung in RUNGS.items()]
    colours = [COLOURS[rung.optimizer == "muon"] for rung in RUNGS.values()]
    bars = right.barh(range(len(RUNGS)), seconds, color=colours, height=0.6)
    right.bar_label(bars, [f"{each:.1f} s" for each in seconds], padding=3)
    right.set_yticks(
        range(len(RUNGS)), [f"+ {rung.words}" if i else rung.words for i, rung in enumerate(RUNGS.values())]
    )
    right.invert_yaxis()
    right.set(xlabel="seconds", title=f"seconds of training to {GOAL:g}", xlim=(0, 1.2 * max(seconds)))
    right.grid(visible=False, axis="y")
    return figure


BENCH = "python -m gptlab.bench experiment=speedrun_cpu trainer.threads=1"
TRAIN = "python -m gptlab.train experiment=speedrun_cpu"

LESSON = Lesson(
    number=7,
    name="speed",
    title="Speed: fewer steps, and faster ones",
    minutes=3,
    commands=(
        f"{TRAIN} {ADAMW} trainer.max_steps=600 trainer.val_every=100 hydra.run.dir=outputs/lessons/7/adamw",
        f"{TRAIN} trainer.max_steps=300 trainer.val_every=50 hydra.run.dir=outputs/lessons/7/muon",
        *(
            " ".join(f"{BENCH} {rung.choices} --json > outputs/lessons/7/{name}.json".split())
            for name, rung in RUNGS.items()
        ),
    ),
    expected=(
        Expected("AdamW: steps to 1.9", steps_to_goal("adamw"), 350, 600),
        Expected("Muon: steps to 1.9", steps_to_goal("muon"), 190, 300),
        Expected("AdamW's steps for one of Muon's", more_steps, 1.2, 3),
        Expected("a step with fused attention, for one written out", times_as_long("sdpa", "manual"), 0.5, 1.5),
        Expected("Muon's step, for AdamW's", times_as_long("muon", "sdpa"), 0.8, 2),
        Expected("a compiled step, for one that is not", times_as_long("compiled", "muon"), 0.5, 1.2),
        Expected("a compiled step in bf16, for one in fp32", times_as_long("bf16", "compiled"), 0.3, 4),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many steps does AdamW take here for each of Muon's?",
            Value(more_steps, 0.1),
            "Divide the first two numbers of the table that the chapter prints.",
            "Muon makes each step of a matrix equally large in all its directions, so that none has to wait.",
        ),
        Exercise(
            "Attention to 64 positions is a small part of a step. With 4 times as many positions, how many times as "
            "much work are its scores, for each token?",
            Value(4, 0),
            "Each token looks at all those before it.",
            "A token has four times as many others to look at, while the rest of a step stays as it is. So fused "
            "attention pays with long texts, and less here.",
        ),
        Exercise(
            "The compiler takes 30 seconds and saves a fifth of a step of 25 ms. From how many steps on does it pay?",
            Value(6000, 0),
            "Divide the 30 seconds by what a step saves.",
            "30 s / 5 ms = 6000 steps. For a run of 200 steps eager is faster; speedrun_cpu is eager for that reason.",
        ),
    ),
)
