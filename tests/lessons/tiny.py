"""A chapter for tests: its commands are short programs, and its numbers lie in a file that they write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.lessons.lesson import Choice, Exercise, Expected, Lesson, Value
from gptlab.lessons.outputs import of_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITE = """python -c 'print("{\\"loss\\": 2.5}")' > outputs/lessons/1/found.json"""


def draw(folder: Path) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([of_json("found.json", "loss")(folder), 0])
    return figure


def tiny_lesson(*commands: str, low: float = 2.4, high: float = 2.6) -> Lesson:
    """Return a chapter whose number is in [low, high] if `WRITE` has written it."""
    loss = of_json("found.json", "loss")
    return Lesson(
        number=1,
        name="tiny",
        title="A chapter for tests",
        minutes=0.1,
        commands=commands or (WRITE,),
        expected=(Expected("the loss", loss, low, high),),
        draw=draw,
        exercises=(
            Exercise("What is the loss?", Value(loss, 0.05), "Look into the file.", "The file says 2.5."),
            Exercise("Which?", Choice({"a": "this", "b": "that"}, "b"), "Not this.", "It is that."),
            Exercise("How many?", Value(65, 0), "Count them.", "There are 65."),
        ),
    )
