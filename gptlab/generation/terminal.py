"""Answers in a terminal: tokens as they are drawn, each in the colour of its surprisal if that is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptlab.formats.open_model import OpenedModel
from gptlab.generation.answers import Answer
from gptlab.generation.text_stream import Piece
from gptlab.models import Model
from gptlab.system.terminal import harmless

SCALE = {0: 120, 1: 156, 2: 193, 4: 228, 6: 222, 8: 216, 10: 210}  # bits of surprisal: the colour from there on


class TokenPrinter:
    """Writes tokens to standard output.

    Args:
        probs: each token in the colour of its surprisal, or with that in brackets where there are no colours.
    """

    def __init__(self, probs: bool) -> None:
        self.console, self.probs = Console(highlight=False), probs
        self.coloured = self.console.color_system is not None and not self.console.no_color
        if probs:
            self.console.print(self.legend())

    def legend(self) -> Text:
        if not self.coloured:
            return Text("[bits]: the surprisal of the token before it, -log2 of its probability")
        steps = [(f" {least}+ ", tint(least)) for least in SCALE]
        return Text.assemble("surprisal of a token, -log2 of its probability, in bits: ", *steps)

    def write(self, text: str) -> None:
        print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)

    def show(self, pieces: list[Piece]) -> None:
        if not self.probs:
            self.write("".join(piece.text for piece in pieces))
        for piece in pieces if self.probs else ():
            self.console.print(self.painted(piece), end="", soft_wrap=True)

    def painted(self, piece: Piece) -> Text:
        text = harmless(piece.text)
        if not self.probs:
            return Text(text)
        text = text.replace("\n", "↵\n")
        if self.coloured:
            return Text(text, tint(piece.bits))
        body = text.rstrip("\n")
        return Text(f"{body}[{piece.bits:.2f}]{text[len(body) :]}")


def tint(bits: float) -> str:
    return f"#000000 on color({[colour for least, colour in SCALE.items() if least <= bits][-1]})"


def note(line: str) -> None:
    """Write a line to standard error, beside the text on standard output."""
    print(line, file=sys.stderr, flush=True)


def introduce(opened: OpenedModel[Model]) -> None:
    """Note which model it is, and its validation loss where it says so."""
    metrics = opened.info.metrics if opened.info else {}
    note(opened.words + (f", val/loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""))


def note_speed(name: str, tokens: int, seconds: float, more: str = "") -> None:
    note(f"{name}: {tokens:,} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s{more}")


def heading(answer: Answer, prompts: int, samples: int) -> str:
    """The line above one of several texts."""
    parts = [f"prompt {answer.number} of {prompts}"] if prompts > 1 else []
    parts += [f"sample {answer.sample} of {samples}", f"--seed {answer.seed}"] if samples > 1 else []
    return f"--- {', '.join(parts)}\n" if parts else ""


def print_json(model: str, answers: Sequence[Answer], probs: bool) -> None:
    """A line of JSON for each answer."""
    for answer in answers:
        print(json.dumps(answer.record(model, probs), ensure_ascii=False), flush=True)


def print_answers(
    answers: list[Answer],
    drawn: Iterator[tuple[Answer, list[Piece]]],
    printer: TokenPrinter,
    prompts: int,
    samples: int,
) -> None:
    """Write answers as they are drawn: the first piece by piece, the others when it is done.

    Args:
        prompts, samples: how many there are in all, for the headings.
    """
    for answer in answers:
        printer.write(heading(answer, prompts, samples) + answer.prompt)
        if answer is answers[0]:
            for each, pieces in drawn:
                printer.show(pieces if each is answer else [])
        else:
            printer.show(answer.stream.pieces)
        printer.write("\n")


def side_by_side(names: list[str], answers: list[list[Answer]], printer: TokenPrinter) -> Table:
    """A row for each prompt and sample, a column for each model."""
    several = len({answer.seed for answer in answers[0]}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=True)
    for name in ("prompt", *["--seed"] * several, *names):
        table.add_column(Text(name), overflow="fold")
    for row in zip(*answers, strict=True):
        texts = [Text().join(map(printer.painted, answer.stream.pieces)) for answer in row]
        table.add_row(Text(harmless(row[0].prompt)), *[Text(str(row[0].seed))] * several, *texts)
    return table
