"""Drawn text on the screen, each token in the colour of its surprisal if that is asked for."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from gptlab.streams import Piece
from gptlab.system.terminal import harmless

SCALE = {0: 120, 1: 156, 2: 193, 4: 228, 6: 222, 8: 216, 10: 210}  # bits of surprisal: the colour from there on


class Page:
    """Standard output.

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
