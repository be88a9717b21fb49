"""Chapter 9: GPT-2: how many parameters it has, what it knows, temperature and top-k, and a story learned by heart.

`python -m gptlab.lessons.chapter_09_gpt2` counts the parameters; with `--weights gpt2` it lets GPT-2 itself speak.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Value
from gptlab.lessons.outputs import at_step, finished, of_summary
from gptlab.system.arguments import some_name
from gptlab.system.errors import UserError, command_line
from gptlab.system.terminal import harmless

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptlab.generation.sampling import Array, Sampling

RUN = "story"
LAST = f"{RUN}/checkpoints/last.ckpt"  # the run's best by val/loss is from before it recites
PROMPT = "Every effort moves you"
OPENING = "I had"  # words of the story
PARTS = {"wte": "token embedding, and head", "wpe": "positions", "h": "12 blocks", "ln_f": "final norm"}
TEMPERATURES = (0.5, 1.0, 2.0)
LIKELIEST = 6  # tokens in the picture


def parameters_by_part(size: str) -> dict[str, int]:
    """Return how many parameters each part of a size of GPT-2 has, without making any of them.

    Args:
        size: the value of `model=`.
    """
    import torch

    from gptlab import models
    from gptlab.runs import compose

    config = compose.compose([f"model={size}", "tokenizer=gpt2"])["model"]
    with torch.device("meta"):  # shapes without numbers
        model = models.build(models.from_dict({**config, "vocab_size": 50257}))
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[name.partition(".")[0]] += parameter.numel()
    return {PARTS[name]: found[name] for name in PARTS}


def parameters_of(size: str) -> float:
    return float(sum(parameters_by_part(size).values()))


def continued(name: str, prompt: str, tokens: int, sampling: Sampling, seed: int = 1) -> str:
    """Return a prompt and how a model continues it.

    Raises:
        UserError: there is no such model.
    """
    from gptlab.formats.open_model import open_model
    from gptlab.generation.context import open_context
    from gptlab.generation.decoding import generate, prompt_ids
    from gptlab.generation.random_numbers import RandomNumbers

    opened = open_model(name)
    ids = prompt_ids(opened.tokenizer, prompt)
    context = open_context(opened.model, [ids], tokens)
    steps = generate(context, tokens, sampling, [RandomNumbers(seed)])
    return opened.tokenizer.decode([*ids, *(step.tokens.item() for step in steps)])


def recited(folder: Path) -> float:
    """Return the length of the longest piece of the story, in characters, in what the run says after its opening."""
    from gptlab.evaluation import eval_data
    from gptlab.evaluation.memorisation import find_copies
    from gptlab.generation.sampling import Sampling

    finished(folder / RUN)
    said = continued(str(folder / LAST), OPENING, 100, Sampling(temperature=0))
    story = [piece.text for piece in eval_data.named_source("verdict", {}, {}).pieces("train")]
    return float(find_copies(said, story).longest)


def next_tokens(folder: Path) -> dict[str, Array]:
    """Return the probabilities of the likeliest tokens after the prompt, (LIKELIEST,), by how they are drawn.

    The key "token" has the tokens themselves.
    """
    import numpy as np

    from gptlab.formats.open_model import open_model
    from gptlab.generation.context import open_context
    from gptlab.generation.decoding import prompt_ids
    from gptlab.generation.sampling import Sampling

    opened = open_model(str(folder / LAST))
    logits = open_context(opened.model, [prompt_ids(opened.tokenizer, PROMPT)], 1).logits()[:, -1]
    ways = {f"temperature {t:g}": Sampling(temperature=t) for t in TEMPERATURES} | {"top-k 3": Sampling(top_k=3)}
    found = {name: way.probabilities(logits)[0] for name, way in ways.items()}
    order = np.argsort(-found["temperature 1"])[:LIKELIEST]
    tokens = np.array([opened.tokenizer.decode([token]) for token in order.tolist()])
    return {"token": tokens, **{name: each[order] for name, each in found.items()}}


def likeliest_at(temperature: str, folder: Path) -> float:
    return float(next_tokens(folder)[f"temperature {temperature}"][0])


def draw(folder: Path) -> Figure:
    """Draw the two losses of the run by steps, and the probabilities of the next token at three temperatures."""
    import numpy as np
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS, GREY
    from gptlab.reports.records import read_curves

    curves = read_curves(folder / RUN)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, key, words in zip(COLOURS, ("train/loss", "val/loss"), ("the story", "its unread end"), strict=False):
        curve = curves[key].dropna()
        left.plot(curve.index, curve, marker="o", ms=3, color=colour, label=words)
    left.axhline(math.log(50257), color=GREY, ls=":", label="knowing nothing: ln 50,257")
    left.set(xlabel="step", ylabel="nats per token", ylim=(0, None), title="learned by heart")
    left.legend(frameon=False)
    found = next_tokens(folder)
    tokens = [repr(str(token)).replace("\\\\", "\\") for token in found.pop("token")]
    for place, (name, each) in enumerate(found.items()):
        right.barh(np.arange(LIKELIEST) + 0.2 * (place - 1.5), each, 0.2, label=name, color=COLOURS[place])
    right.set_yticks(range(LIKELIEST), tokens)
    right.invert_yaxis()
    right.set(xlabel="probability", title=f'after "{PROMPT}"')
    right.grid(visible=False, axis="y")
    right.set_axisbelow(True)
    right.legend(frameon=False)
    return figure


GENERATE = f"python -m gptlab.generate outputs/lessons/9/{LAST}"

LESSON = Lesson(
    number=9,
    name="gpt2",
    title="GPT-2: its shape, its weights, and a story learned by heart",
    minutes=1,
    commands=(
        "python -m gptlab.lessons.chapter_09_gpt2 --weights gpt2",
        "python -m gptlab.train experiment=verdict model.n_layer=2 model.n_head=4 model.n_embd=128 optim.lr=4e-3 "
        "hydra.run.dir=outputs/lessons/9/story",
        f'{GENERATE} "I had" --max-new-tokens 60 --temperature 0',
        f'{GENERATE} "Every effort moves you" --max-new-tokens 30 --temperature 0.5 --top-k 3 --seed 1',
        f'{GENERATE} "Every effort moves you" --max-new-tokens 30 --temperature 2 --seed 1',
    ),
    expected=(
        Expected("parameters of GPT-2, 124M", lambda folder: parameters_of("gpt2"), 124439808, 124439808),
        Expected("val/loss before the first step", at_step(RUN, "val/loss", 0), 10.9, 11.2),
        Expected("train/loss at the end", of_summary(RUN, "train/loss"), 0, 2.8),
        Expected("val/loss at the end", of_summary(RUN, "val/loss"), 5.7, 8.8),
        Expected("characters recited", recited, 8, 490),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many parameters has GPT-2 XL, the largest one (model=gpt1558m)?",
            Value(lambda folder: parameters_of("gpt1558m"), 0),
            "The first command takes --size gpt1558m.",
            "48 blocks of 1600 columns, and the same vocabulary: 1,557,611,200. It is called 1.5B.",
        ),
        Exercise(
            "How many nats has a model that gives each of GPT-2's 50,257 tokens the same probability?",
            Value(math.log(50257), 0.01),
            "It is the natural logarithm of the number of tokens.",
            "ln 50257 = 10.82. The run of this chapter starts a little above: PyTorch's initial values are large.",
        ),
        Exercise(
            "Which setting makes generate give the same text each time, whatever the seed?",
            Choice({"a": "--temperature 1", "b": "--top-k 1", "c": "--top-p 0.99"}, "b"),
            "Among how many tokens is there still a choice?",
            "With --top-k 1 only the likeliest token is left, as with --temperature 0.",
        ),
    ),
)


def show_parameters(size: str) -> None:
    """Print how many parameters each part has."""
    found = parameters_by_part(size)
    for name, count in [*found.items(), ("in all", sum(found.values()))]:
        print(f"{name:28}{count:>15,}")


def let_speak(weights: str) -> None:
    """Print how a model continues the prompt, drawn in three ways; where there is none, one sentence."""
    from gptlab.generation.sampling import Sampling

    ways: dict[str, Any] = {
        "greedy": {"temperature": 0},
        "temperature 0.5, top-k 3": {"temperature": 0.5, "top_k": 3},
        "temperature 2": {"temperature": 2},
    }
    try:
        for name, way in ways.items():
            print(f"\n{name}:\n{harmless(continued(weights, PROMPT, 30, Sampling(**way)))}")
    except UserError as error:
        print(f"\nWhat these weights say is skipped, for they are not here. {error}")


def main() -> None:
    """Count the parameters, and let a model speak where one is named and there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", default="gpt2", type=some_name, help="a size of GPT-2: gpt2 (default), gpt350m, ...")
    p.add_argument("--weights", metavar="MODEL", type=some_name, help="gpt2, which is downloaded once, or a folder")
    args = p.parse_args()
    with command_line():
        show_parameters(args.size)
        if args.weights:
            let_speak(args.weights)


if __name__ == "__main__":
    main()
