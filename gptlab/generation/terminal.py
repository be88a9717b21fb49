"""Answers in a terminal: tokens as they are drawn, on request each in the colour of its surprisal."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import Answer
from gptlab.generation.text_stream import Piece
from gptlab.system.terminal import harmless

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

SURPRISAL_COLOURS = {0: 120, 1: 156, 2: 193, 4: 228, 6: 222, 8: 216, 10: 210}  # lowest bits of surprisal: colour


class TokenPrinter:
    """Writes tokens to standard output.

    Args:
        probs: show the surprisal of each token as its colour, or in brackets where the terminal has no colours.
    """

    def __init__(self, probs: bool) -> None:
        self.console, self.probs = Console(highlight=False), probs
        self.coloured = self.console.color_system is not None and not self.console.no_color
        if probs:
            self.console.print(self.legend())

    def legend(self) -> Text:
        """Return the line that explains how surprisal is shown."""
        if not self.coloured:
            return Text("[bits]: the surprisal of the token before it, -log2 of its probability")
        steps = [(f" {least}+ ", surprisal_style(least)) for least in SURPRISAL_COLOURS]
        return Text.assemble("surprisal of a token, -log2 of its probability, in bits: ", *steps)

    def write(self, text: str) -> None:
        """Write text; in a terminal, without control characters."""
        print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)

    def show(self, pieces: list[Piece]) -> None:
        """Write pieces of an answer."""
        if not self.probs:
            self.write("".join(piece.text for piece in pieces))
        for piece in pieces if self.probs else ():
            self.console.print(self.styled(piece), end="", soft_wrap=True)

    def styled(self, piece: Piece) -> Text:
        """Return a piece as it is shown, with its surprisal on request."""
        text = harmless(piece.text)
        if not self.probs:
            return Text(text)
        text = text.replace("\n", "↵\n")
        if self.coloured:
            return Text(text, surprisal_style(piece.bits))
        body = text.rstrip("\n")
        return Text(f"{body}[{piece.bits:.2f}]{text[len(body) :]}")


def surprisal_style(bits: float) -> str:
    """Return the style, for rich, of a token with that many bits of surprisal."""
    return f"#000000 on color({[colour for least, colour in SURPRISAL_COLOURS.items() if least <= bits][-1]})"


def stdin_is_piped() -> bool:
    """Return whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or missing
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def note(line: str) -> None:
    """Write a line to standard error: standard output has only the text."""
    print(line, file=sys.stderr, flush=True)


def note_model(opened: OpenedModel[Model | ArrayGPT]) -> None:
    """Note which model was opened, and its validation loss if the checkpoint has it."""
    metrics = opened.info.metrics if opened.info else {}
    note(opened.words + (f", val/loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""))


def note_speed(name: str, tokens: int, seconds: float, more: str = "") -> None:
    """Note how many tokens were drawn, and how fast."""
    note(f"{name}: {tokens:,} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s{more}")


def heading(answer: Answer, prompts: int, samples: int) -> str:
    """Return the line above an answer; empty if there is only one prompt and one sample.

    Args:
        answer: the answer below the line.
        prompts: the number of prompts.
        samples: the number of samples for each prompt.
    """
    parts = [f"prompt {answer.number} of {prompts}"] if prompts > 1 else []
    parts += [f"sample {answer.sample} of {samples}", f"--seed {answer.seed}"] if samples > 1 else []
    return f"--- {', '.join(parts)}\n" if parts else ""


def print_json(model: str, answers: Sequence[Answer], drawn: Iterator[tuple[Answer, list[Piece]]], probs: bool) -> None:
    """Print a line of JSON for each answer, in their order, as soon as it has ended.

    Args:
        model: the model's name.
        answers: the answers.
        drawn: their pieces as they are drawn, see `draw_answers`.
        probs: include the text and the surprisal of each token.
    """
    printed = 0
    for _ in drawn:
        while printed < len(answers) and answers[printed].stream.finish is not None:
            print(json.dumps(answers[printed].record(model, probs), ensure_ascii=False), flush=True)
            printed += 1


def print_answers(
    answers: list[Answer],
    drawn: Iterator[tuple[Answer, list[Piece]]],
    printer: TokenPrinter,
    prompts: int,
    samples: int,
) -> None:
    """Write answers in their order, each as far as it is drawn once the one before has ended.

    Args:
        answers: the answers.
        drawn: their pieces as they are drawn, see `draw_answers`.
        printer: writes the answers.
        prompts: the number of all prompts, for the headings.
        samples: the number of samples for each prompt, for the headings.
    """
    rest = iter(answers)

    def begin() -> Answer | None:
        following = next(rest, None)
        if following is not None:
            printer.write(heading(following, prompts, samples) + following.prompt)
            printer.show(following.stream.pieces)
        return following

    current = begin()
    for each, pieces in drawn:
        if each is current:
            printer.show(pieces)
        while current is not None and current.stream.finish is not None:
            printer.write("\n")
            current = begin()


def comparison_table(names: list[str], answers: list[list[Answer]], printer: TokenPrinter) -> Table:
    """Return a table with a row for each prompt and sample, and a column for each model.

    Args:
        names: the names of the models.
        answers: the answers of each model, in the same order.
        printer: styles the texts.
    """
    several = len({answer.seed for answer in answers[0]}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=True)
    for name in ("prompt", *["--seed"] * several, *names):
        table.add_column(Text(name), overflow="fold")
    for row in zip(*answers, strict=True):
        texts = [Text().join(map(printer.styled, answer.stream.pieces)) for answer in row]
        table.add_row(Text(harmless(row[0].prompt)), *[Text(str(row[0].seed))] * several, *texts)
    return table
