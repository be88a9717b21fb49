"""Chapter 5: what residual connections and LayerNorm do to the gradient that each block gets.

`python -m gptlab.lessons.chapter_05_gradients` shows it, for the chapter's runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.lessons.lesson import OUTPUTS, Choice, Exercise, Expected, Lesson, Read, Value, rounded
from gptlab.lessons.outputs import finished, of_summary
from gptlab.system.errors import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

RUNS = {"plain": "no residuals", "residual": "residuals", "layernorm": "residuals and LayerNorm"}
STEPS = 500
RESIDUAL = "experiment=ladder_6_residual"
DEEP = f"model.n_layer=8 trainer.max_steps={STEPS}"
WINDOWS = 256  # pieces of the validation part that gradients are of
WIDTHS = (3, 3, 3, 3, 3, 1)  # of the five-layer network of the GPT-2 lesson
SEED = 123  # of its weights


def five_layers(shortcuts: bool) -> list[float]:
    """Return the gradients of the GPT-2 lesson's five layers, with or without shortcuts: the mean size in each.

    Each layer is a matrix and a GELU; a shortcut adds a layer's input to its output where both have one size. The input
    is (1, 0, -1), and the loss the squared distance of the output from 0.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers = [nn.Linear(rows, columns) for rows, columns in pairwise(WIDTHS)]
    x = torch.tensor([[1.0, 0.0, -1.0]])
    for layer in layers:
        y = F.gelu(layer(x), approximate="tanh")
        x = x + y if shortcuts and x.shape == y.shape else y
    x.square().mean().backward()
    return [float(layer.weight.grad.abs().mean()) for layer in layers if layer.weight.grad is not None]


def gradients_by_block(model: nn.Module) -> list[float]:
    """Return the norm of the gradient of each block of a GPT, over the first pieces of the validation part."""
    import torch

    from gptlab.evaluation.loss import cross_entropy
    from gptlab.lessons.text import shakespeare

    gpt: Any = model
    T = gpt.config.block_size
    ids = torch.from_numpy(shakespeare()[2][: WINDOWS * T + 1])
    idx, targets = ids[:-1].view(WINDOWS, T), ids[1:].view(WINDOWS, T)
    gpt.zero_grad()
    cross_entropy(gpt(idx), targets, "mean").backward()
    return [math.sqrt(sum(float(p.grad.square().sum()) for p in block.parameters())) for block in gpt.h]


def gradients_of_run(run_dir: Path) -> tuple[list[float], list[float]]:
    """Return the gradients by block of a run's network before its first step and after its last."""
    import torch

    from gptlab.formats.open_model import open_model
    from gptlab.models.networks import build

    seed = finished(run_dir)["seed"]
    opened: Any = open_model(str(run_dir / "checkpoints" / "last.ckpt"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(opened.model.config)
    return gradients_by_block(fresh), gradients_by_block(opened.model)


def of_layer(shortcuts: bool, layer: int) -> Read:
    return lambda folder: five_layers(shortcuts)[layer]


def powers_of_ten(gradients: Sequence[float]) -> float:
    """Return by how many powers of ten the gradient of the first block is smaller than that of the last."""
    return math.log10(gradients[-1] / gradients[0])


def before_training(run: str) -> Read:
    """Return what computes `powers_of_ten` of a run's network before its first step."""
    return lambda folder: powers_of_ten(gradients_of_run(folder / run)[0])


def draw(folder: Path) -> Figure:
    """Draw the gradient of each block, before and after training."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for colour, (run, label) in zip(COLOURS, RUNS.items(), strict=False):
        for axes, gradients in zip(panels, gradients_of_run(folder / run), strict=True):
            axes.plot(range(1, len(gradients) + 1), gradients, "o-", color=colour, label=label)
    for axes, title in zip(panels, ("before the first step", f"after {STEPS} steps"), strict=True):
        axes.set(title=title, xlabel="block (8 is the one below the head)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("norm of the gradient")
    panels[1].legend(frameon=False)
    return figure


LESSON = Lesson(
    number=5,
    name="gradients",
    title="Residuals and LayerNorm: the gradient that each block gets",
    minutes=1,
    commands=(
        f"python -m gptlab.train {RESIDUAL} model.residual=false {DEEP} hydra.run.dir=outputs/lessons/5/plain",
        f"python -m gptlab.train {RESIDUAL} {DEEP} hydra.run.dir=outputs/lessons/5/residual",
        f"python -m gptlab.train experiment=ladder_7_layernorm {DEEP} hydra.run.dir=outputs/lessons/5/layernorm",
        "python -m gptlab.lessons.chapter_05_gradients",
    ),
    expected=(
        rounded("five layers, gradient of the last", of_layer(False, -1), 5.05e-3, 5),
        rounded("five layers, gradient of the first", of_layer(False, 0), 2.02e-4, 6),
        rounded("with shortcuts, gradient of the last", of_layer(True, -1), 1.326, 3),
        rounded("with shortcuts, gradient of the first", of_layer(True, 0), 0.222, 3),
        Expected("powers of ten lost, no residuals", before_training("plain"), 5.2, 10.5),
        Expected("powers of ten lost, residuals", before_training("residual"), -0.3, 0.3),
        Expected("powers of ten lost, LayerNorm", before_training("layernorm"), -0.65, 0.6),
        Expected("loss after 500 steps, no residuals", of_summary("plain", "val/loss"), 2.95, 3.55),
        Expected("loss after 500 steps, residuals", of_summary("residual", "val/loss"), 2.29, 2.39),
        Expected("loss after 500 steps, LayerNorm", of_summary("layernorm", "val/loss"), 2.32, 2.40),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "Without shortcuts, how many times larger is the gradient of the last of five layers than of the first?",
            Value(lambda folder: five_layers(False)[-1] / five_layers(False)[0], 0.5),
            "Divide the first two numbers of the table.",
            "25 times: each layer but the last makes the gradient two or three times smaller on its way down.",
        ),
        Exercise(
            "x + f(x) is a block with a residual connection. If f's own gradient is 0, what becomes of the gradient "
            "that comes from above?",
            Choice({"a": "it is 0 below the block", "b": "it passes unchanged", "c": "it is halved"}, "b"),
            "The derivative of x + f(x) by x is 1 + f'(x).",
            "1 + f'(x) is 1 where f' is 0: a residual connection is a way around each block.",
        ),
        Exercise(
            "Train the network without residuals with model.n_layer=2 in place of 8, for as many steps. What is its "
            "val/loss?",
            Value(2.78, 0.31),
            "The page has the command; its last lines begin with the number.",
            "2.71 to 2.82 for four seeds. Two blocks lose one power of ten, and learn; eight lose seven or eight.",
        ),
    ),
)


def main() -> None:
    """Print the gradients of the five layers, and of each block of the chapter's runs."""
    with command_line():
        for shortcuts in (False, True):
            words = " ".join(f"{size:.2g}" for size in five_layers(shortcuts))
            print(f"five layers {'with' if shortcuts else 'without'} shortcuts, gradients from the first on: {words}")
        for run, label in RUNS.items():
            both = gradients_of_run(OUTPUTS / str(LESSON.number) / run)
            for when, gradients in zip(("before training", "after"), both, strict=True):
                print(f"{label}, {when}: " + " ".join(f"{norm:.1e}" for norm in gradients))


if __name__ == "__main__":
    main()
