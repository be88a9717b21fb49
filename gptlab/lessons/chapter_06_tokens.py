"""Chapter 6: one text as characters, as words and as pieces of words, and what compares models of them.

`python -m gptlab.lessons.chapter_06_tokens` shows the tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer
from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Value, rounded
from gptlab.lessons.outputs import of_summary
from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENTENCES = ("Tokenization is fun!", "Every effort moves you", "Your journey")
SHOWN = "But, soft! what light through yonder window breaks?"  # in the picture; from the text
RUNS = ("char", "bpe", "word")


def as_characters(text: str) -> list[str]:
    """Return the characters of a text, as a tokenizer of characters has them."""
    return pieces(CharTokenizer.fit([text]), text)


def as_words(text: str) -> list[str]:
    """Return the words of a text, as a tokenizer of words has them: without white space."""
    return pieces(WordTokenizer.fit([text], None), text)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the texts of a text's tokens; those of words without the space that is written between them."""
    found = [tokenizer.tokens[i].decode("utf-8", "backslashreplace") for i in tokenizer.encode(text).tolist()]
    return [piece.strip() for piece in found] if tokenizer.name == "word" else found


def show_sentence(sentence: str, named: dict[str, Tokenizer]) -> None:
    """Print a sentence as characters, as words, and by the tokenizers that are there, with their ids."""
    print(f"\n{sentence!r}")
    for name, found in (("characters", as_characters(sentence)), ("words", as_words(sentence))):
        print(f"  {name}: {len(found)}, of which {len({*found})} different: {'|'.join(found)}")
    for name, tokenizer in named.items():
        found = pieces(tokenizer, sentence)
        print(f"  {name}: {len(found)}: {'|'.join(found)} {tokenizer.encode(sentence).tolist()}")


def bytes_a_token(run: str, folder: Path) -> float:
    """Return how many bytes of text a token of a run has in the mean, by its two losses."""
    nats, bits = (of_summary(run, key)(folder) for key in ("val/loss", "val/bpb"))
    return nats / math.log(2) / bits


def draw(folder: Path) -> Figure:
    """Draw a line of the text in the tokens of the three runs, and below it their two losses."""
    from matplotlib.figure import Figure

    from gptlab.reports.plots.style import COLOURS

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.7))
    draw_pieces(figure.add_subplot(grid[0, :]), {name: learned_pieces(folder / name) for name in RUNS})
    losses = {"val/loss": "nats per token", "val/bpb": "bits per byte"}
    for place, (key, title) in enumerate(losses.items()):
        axes = figure.add_subplot(grid[1, place])
        values = [of_summary(run, key)(folder) for run in RUNS]
        bars = axes.bar(RUNS, values, color=COLOURS[: len(RUNS)], width=0.6)
        if key == "val/bpb":
            bars[-1].set(hatch="///", alpha=0.4)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2)
        axes.set(title=title, ylim=(0, 1.15 * max(values)))
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
    axes.set_xticks(range(len(RUNS)), ["char", "bpe", "word: of words only"])
    return figure


def learned_pieces(run_dir: Path) -> list[str]:
    """Return the pieces that a run's own tokenizer makes of `SHOWN`."""
    from gptlab.formats.open_model import open_model

    return pieces(open_model(str(run_dir)).tokenizer, SHOWN)


def draw_pieces(axes: Any, rows: dict[str, list[str]]) -> None:
    """Draw rows of pieces as boxes in turning colours, each as wide as its characters."""
    pale = ("#CCE3F0", "#FBE0C8", "#CFEBE0")
    for row, (name, found) in enumerate(rows.items()):
        left = 0.0
        for place, piece in enumerate(found):
            width = len(piece) + 0.3 * (name == "word")
            axes.barh(-row, width, 0.7, left, color=pale[place % len(pale)], edgecolor="white")
            axes.text(left + width / 2, -row, piece.replace(" ", "␣"), ha="center", va="center", size=7.5)
            left += width
        axes.text(left + 0.7, -row, f"{len(found)} tokens", va="center", size=8)
    axes.set_yticks(range(0, -len(rows), -1), list(rows))
    axes.set(xlim=(0, len(SHOWN) + 9), xticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def count_of(kind: str, distinct: bool = False) -> Any:
    """Return what counts the characters or words of the first sentence."""
    found = as_characters(SENTENCES[0]) if kind == "characters" else as_words(SENTENCES[0])
    return lambda folder: float(len({*found}) if distinct else len(found))


TRAIN = "python -m gptlab.train experiment=speedrun_cpu"

LESSON = Lesson(
    number=6,
    name="tokens",
    title="Tokens: one text, three ways",
    minutes=1,
    commands=(
        "python -m gptlab.lessons.chapter_06_tokens",
        f"{TRAIN} tokenizer=char hydra.run.dir=outputs/lessons/6/char",
        f"{TRAIN} tokenizer=bpe tokenizer.vocab_size=512 hydra.run.dir=outputs/lessons/6/bpe",
        f"{TRAIN} tokenizer=word tokenizer.vocab_size=4096 hydra.run.dir=outputs/lessons/6/word",
    ),
    expected=(
        Expected('"Tokenization is fun!", characters', count_of("characters"), 20, 20),
        Expected("of which different", count_of("characters", distinct=True), 14, 14),
        Expected("words and marks", count_of("words"), 4, 4),
        Expected("characters, nats per token", of_summary("char", "val/loss"), 1.8, 1.98),
        Expected("characters, bits per byte", of_summary("char", "val/bpb"), 2.6, 2.86),
        Expected("BPE, nats per token", of_summary("bpe", "val/loss"), 3.18, 3.4),
        Expected("BPE, bits per byte", of_summary("bpe", "val/bpb"), 2.44, 2.61),
        Expected("words, nats per token", of_summary("word", "val/loss"), 4.59, 4.79),
        rounded("bytes of text in a BPE token", lambda folder: bytes_a_token("bpe", folder), 1.877, 3),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many bytes of text does a token of the BPE run have in the mean? Take its two losses.",
            Value(lambda folder: bytes_a_token("bpe", folder), 0.02),
            "Divide nats per token by ln 2, which makes bits per token of them, and then by bits per byte.",
            "Nats per token / ln 2 are bits per token; bits per token / bits per byte are bytes per token.",
        ),
        Exercise(
            "Why can the words' bits per byte not be set beside the others'?",
            Choice(
                {
                    "a": "the model of words has more parameters",
                    "b": "white space and rare words need not be predicted",
                    "c": "words are longer than pieces",
                },
                "b",
            ),
            "What comes back when you encode a text in words and decode it again?",
            "A tokenizer of words drops white space and makes one token of all rare words. What is not there costs "
            "no bits, so the text that is measured is an easier one.",
        ),
        Exercise(
            "Which characters would GPT-2's 50,257 tokens fail to write?",
            Choice(
                {
                    "a": "those of other scripts",
                    "b": "those that its training text lacked",
                    "c": "none",
                },
                "c",
            ),
            "What are the first 256 tokens of a byte-level BPE?",
            "Its first 256 tokens are the bytes, and every text is bytes in UTF-8. A rare character takes several "
            "tokens, but none is impossible.",
        ),
    ),
)


def main() -> None:
    """Print sentences as characters, as words, and in GPT-2's and GPT-4's tokens where these are there."""
    from gptlab.evaluation.eval_data import data_folders

    with command_line():
        named: dict[str, Tokenizer] = {}
        for name, read in (("gpt2", BPETokenizer.gpt2), ("cl100k_base", BPETokenizer.cl100k_base)):
            try:
                named[name] = read(data_folders({})[0])
            except UserError as error:
                print(f"{name} is skipped. {error}")
        for sentence in SENTENCES:
            show_sentence(sentence, named)


if __name__ == "__main__":
    main()
