"""Chapter 2: attention by hand, on six tokens of three numbers; gptlab's own functions compute it.

The numbers are those of the GPT-2 lesson. `python -m gptlab.lessons.chapter_02_attention` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Read, Value, rounded
from gptlab.lessons.maps import label_cells
from gptlab.system.errors import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TOKENS = ("Your", "journey", "starts", "with", "one", "step")
INPUTS = (
    (0.43, 0.15, 0.89),
    (0.55, 0.87, 0.66),
    (0.57, 0.85, 0.64),
    (0.22, 0.58, 0.33),
    (0.77, 0.25, 0.10),
    (0.05, 0.80, 0.55),
)
JOURNEY = 1  # the place of the token whose context is computed
SCORES = (0.1, -0.2, 0.3, -0.2, 0.5)  # numbers that are made into weights
SHARPER = 8.0  # a scale that makes them sharper
SEED, COLUMNS = 123, 2  # of the matrices that make queries, keys and values


def attend(x: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Compute attention without weights: each token is query, key and value.

    Args:
        x: the tokens, (T, C).
        causal: whether a token sees none after it.

    Returns:
        The attention weights, (T, T), and the contexts, (T, C).
    """
    return attend_with(x, x, x, 1.0, causal)


def attend_with(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Compute attention of one head by gptlab's functions; q, k, v are (T, D), see `attend`."""
    from gptlab.models.attention import attention_weights, manual_attention
    from gptlab.models.dropout import NO_DROPOUT

    q, k, v = (each[None, None] for each in (q, k, v))  # (B, H, T, D)
    bias = None if causal else q.new_zeros(1, 1, q.shape[2], k.shape[2])
    weights = attention_weights(q, k, bias, scale)
    return weights[0, 0], manual_attention(q, k, v, bias, scale, NO_DROPOUT)[0, 0]


def tokens() -> Tensor:
    """Return the six tokens, (6, 3)."""
    import torch

    return torch.tensor(INPUTS)


def softmax_of_scores(scale: float) -> list[float]:
    """Return the weights that attention makes of `SCORES`: one query of 1 meets five keys."""
    import torch

    keys = torch.tensor(SCORES)[:, None]  # (5, 1)
    weights, _ = attend_with(torch.ones(1, 1), keys, keys, scale, causal=False)
    return weights[0].tolist()


def context_of_journey() -> list[float]:
    """Return what attention without weights makes of "journey", which sees all six tokens."""
    return attend(tokens())[1][JOURNEY].tolist()


def causal_context_of_journey() -> list[float]:
    """Return the same where a token sees none after it."""
    return attend(tokens(), causal=True)[1][JOURNEY].tolist()


def projected_context_of_journey() -> list[float]:
    """Return the context where matrices make queries, keys and values of the tokens, two columns each."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    x = tokens()
    q, k, v = (x @ torch.rand(x.shape[1], COLUMNS, generator=generator) for _ in range(3))
    return attend_with(q, k, v, COLUMNS**-0.5, causal=False)[1][JOURNEY].tolist()


def each_number(name: str, compute: Callable[[], list[float]], values: Sequence[float]) -> list[Expected]:
    """Return an expected number for each place of a vector.

    Args:
        name: what the vector is.
        compute: computes it.
        values: what it should be.
    """

    def at(place: int) -> Read:
        return lambda folder: compute()[place]

    return [rounded(f"{name} [{place}]", at(place), value) for place, value in enumerate(values)]


def draw(folder: Path) -> Figure:
    """Draw the weights without and with a mask, and what a larger scale does to a softmax."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS

    figure = Figure(figsize=(9, 3), layout="constrained")
    *maps, bars = figure.subplots(1, 3)
    for axes, causal, title in zip(maps, (False, True), ("every token sees all", "none sees the future"), strict=True):
        weights = attend(tokens(), causal)[0].numpy()
        axes.imshow(weights, vmin=0, vmax=1, cmap="Blues")
        for row, column in zip(*weights.nonzero(), strict=True):
            dark = weights[row, column] > 0.5
            axes.text(
                column, row, f"{weights[row, column]:.2f}", size=6, ha="center", va="center", color="kw"[int(dark)]
            )
        axes.set(title=title, xlabel="looks at")
        label_cells(axes, TOKENS, 7)
        axes.tick_params(axis="x", labelrotation=45)
    for shift, scale, colour in ((-0.2, 1.0, COLOURS[0]), (0.2, SHARPER, COLOURS[1])):
        places = [place + shift for place in range(len(SCORES))]
        bars.bar(places, softmax_of_scores(scale), width=0.4, color=colour, label=f"scale {scale:g}")
    bars.set_xticks(range(len(SCORES)), [f"{score:g}" for score in SCORES])
    bars.set(title="softmax of five scores", xlabel="score", ylabel="weight")
    bars.legend(frameon=False)
    return figure


LESSON = Lesson(
    number=2,
    name="attention",
    title="Attention by hand: six tokens, three numbers each",
    minutes=0.1,
    commands=("python -m gptlab.lessons.chapter_02_attention",),
    expected=(
        *each_number("context of journey", context_of_journey, (0.4419, 0.6515, 0.5683)),
        *each_number("softmax", partial(softmax_of_scores, 1.0), (0.1925, 0.1426, 0.2351, 0.1426, 0.2872)),
        *each_number("softmax, scale 8", partial(softmax_of_scores, SHARPER), (0.0326, 0.0030, 0.1615, 0.0030, 0.8000)),
        *each_number("context with matrices", projected_context_of_journey, (0.3061, 0.8210)),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "With the mask, journey sees only Your and itself. What is the first number of its context then?",
            Value(lambda folder: causal_context_of_journey()[0], 0.001),
            "Take the two weights of its row in the second table, and the first numbers of the two tokens.",
            "0.368 x 0.43 + 0.632 x 0.55 = 0.506: a context is a weighted mean of what is seen.",
        ),
        Exercise(
            "By what number does a head of 64 columns multiply its scores before the softmax?",
            Value(64**-0.5, 1e-6),
            "The scale is 1 / sqrt(columns); the chapter's matrices have 2 columns, and so 0.7071.",
            "1 / sqrt(64) = 0.125. Without it scores grow with the columns, and the softmax becomes as sharp as for 8.",
        ),
        Exercise(
            "What becomes of the softmax of five scores as the scale goes to 0?",
            Choice({"a": "all weights go to 0", "b": "all weights go to 0.2", "c": "the largest goes to 1"}, "b"),
            "Weights always sum to 1; and five numbers that are multiplied by 0 are all the same.",
            "Equal scores give equal weights: attention becomes the plain mean of what it sees.",
        ),
    ),
)


def main() -> None:
    """Print each step."""
    with command_line():
        x = tokens()
        for title, causal in (("weights, where every token sees all", False), ("weights with the mask", True)):
            print(f"{title}:")
            for token, row in zip(TOKENS, attend(x, causal)[0], strict=True):
                print(f"  {token:8}" + shown(row.tolist()))
        print(f"context of journey, which sees all: {shown(context_of_journey())}")
        print(f"softmax of {shown(SCORES, 1)}: {shown(softmax_of_scores(1.0))}")
        print(f"softmax of 8 times those: {shown(softmax_of_scores(SHARPER))}")
        print(f"context of journey with matrices, scale 1/sqrt(2): {shown(projected_context_of_journey())}")


def shown(numbers: Sequence[float], digits: int = 4) -> str:
    return " ".join(f"{number:.{digits}f}" for number in numbers)


if __name__ == "__main__":
    main()
