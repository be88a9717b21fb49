"""Chapter 1: the bigram, a table of which character follows which, counted and learned.

`python -m gptlab.lessons.chapter_01_table` counts it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Value, rounded
from gptlab.lessons.maps import label_cells
from gptlab.lessons.outputs import at_step, of_summary
from gptlab.system.errors import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN = "bigram"
SHOWN = "\n ',.abcdefghijklmnopqrstuvwxyz"  # characters in the picture, of 65


def counted_pairs(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return how often each token follows each in a text, (V, V) int64: a row is the first of two, a column the next.

    Args:
        ids: the text, (n,).
    """
    codes = ids[:-1] * vocab_size + ids[1:]
    return np.bincount(codes, minlength=vocab_size**2).reshape(vocab_size, vocab_size)


def add_one(counts: np.ndarray) -> np.ndarray:
    """Return the probability of each token after each, (V, V) float64; every pair counts once more than it stands."""
    return (counts + 1) / (counts + 1).sum(axis=1, keepdims=True)


def nats_of_pairs(table: np.ndarray, ids: np.ndarray) -> float:
    """Return the loss of a table of probabilities on a text: the mean of -ln of the probability of what comes next."""
    return float(-np.log(table[ids[:-1], ids[1:]]).mean())


def add_one_loss(folder: Path | None = None) -> float:
    """Return the loss of the counted table on the validation part."""
    from gptlab.lessons.text import shakespeare

    tokenizer, train, val = shakespeare()
    return nats_of_pairs(add_one(counted_pairs(train, tokenizer.vocab_size)), val)


def kneser_ney_loss(folder: Path | None = None) -> float:
    """Return the loss of pairs that are counted and smoothed with more care: `ngram:2` of gptlab.evaluate."""
    from gptlab.evaluation.ngrams import NGrams
    from gptlab.lessons.text import shakespeare

    tokenizer, train, val = shakespeare()
    return float(NGrams(train, tokenizer.vocab_size, 2).nats(val).mean())


def followers(character: str) -> list[tuple[str, float]]:
    """Return the characters that may come after one, with their probabilities, the likeliest first."""
    from gptlab.lessons.text import shakespeare

    tokenizer, train, _ = shakespeare()
    row = add_one(counted_pairs(train, tokenizer.vocab_size))[tokenizer.encode(character)[0]]
    return [(tokenizer.decode([i]), float(row[i])) for i in np.argsort(-row)]


def after_q(folder: Path | None = None) -> float:
    """Return the probability of u after q."""
    return dict(followers("q"))["u"]


def learned_table(run_dir: Path) -> np.ndarray:
    """Return the probabilities that a trained bigram gives, (V, V); rows and columns as in `counted_pairs`."""
    from gptlab.formats.open_model import open_model

    model: Any = open_model(str(run_dir)).model
    return model.wte.weight.detach().double().softmax(dim=1).numpy()


def draw(folder: Path) -> Figure:
    """Draw both tables side by side, of the characters in `SHOWN`."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from gptlab.lessons.text import shakespeare

    tokenizer, train, _ = shakespeare()
    tables = {
        "counted": add_one(counted_pairs(train, tokenizer.vocab_size)),
        "learned by gradient descent": learned_table(folder / RUN),
    }
    shown = tokenizer.encode(SHOWN)
    labels = [{"\n": "\\n", " ": "␣"}.get(character, character) for character in SHOWN]
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (title, table) in zip(figure.subplots(1, 2), tables.items(), strict=True):
        image = axes.imshow(table[np.ix_(shown, shown)], norm=LogNorm(1e-4, 1), cmap="magma")
        axes.set(title=title, xlabel="next character", ylabel="character")
        label_cells(axes, labels, 6)
    figure.colorbar(image, ax=figure.axes, label="probability", shrink=0.7, extend="min", format="{x:g}")
    return figure


LESSON = Lesson(
    number=1,
    name="table",
    title="A table: which character follows which",
    minutes=0.5,
    commands=(
        "python -m gptlab.train experiment=ladder_1_bigram hydra.run.dir=outputs/lessons/1/bigram",
        "python -m gptlab.lessons.chapter_01_table",
        "python -m gptlab.evaluate outputs/lessons/1/bigram --compare ngram:2",
    ),
    expected=(
        rounded("the counted table, add-1", add_one_loss, 2.4819),
        rounded("the counted table, Kneser-Ney", kneser_ney_loss, 2.4835),
        Expected("the bigram before its first step", at_step(RUN, "val/loss", 0), 4.16, 4.19),
        Expected("the bigram after 5000 steps", of_summary(RUN, "val/loss"), 2.47, 2.50),
        Expected("numbers in the table", of_summary(RUN, "parameters"), 4225, 4225),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "GPT-2 knows 50,257 tokens. What is the loss of a model that gives each of them the same probability?",
            Value(math.log(50257), 0.03),
            "The loss is -ln of the probability of what comes. Of 65 characters it would be -ln(1/65) = 4.174.",
            "-ln(1/50257) = ln 50257 = 10.825. A new model that starts far above is sure of itself without a reason.",
        ),
        Exercise(
            "How probable is u after q, by the counted table?",
            Value(after_q, 0.005),
            "The second command prints what may come after q, with probabilities.",
            "All 563 q have a u after them. That is few, so that the 65 pairs that add-1 counts besides weigh a tenth.",
        ),
        Exercise(
            "Train the table for 20,000 steps in place of 5000. Does it fall below 2.47?",
            Choice({"a": "yes, it is well below", "b": "no, it stays where it was"}, "b"),
            "The page has the command; look at val/loss in its last lines, and compare it with the counted table's.",
            "It ends at 2.49 again: counting is about the best that a table of pairs can do, and 5000 steps are close. "
            "To get lower the model must look at more than one character.",
        ),
    ),
)


def main() -> None:
    """Print the counted table's loss, and what it gives after a few characters."""
    with command_line():
        print(f"the counted table, add-1: {add_one_loss():.4f} nats per character")
        for character in ("q", "t", " ", "."):
            likeliest = ", ".join(f"{following!r} {share:.1%}" for following, share in followers(character)[:5])
            print(f"after {character!r}: {likeliest}")


if __name__ == "__main__":
    main()
