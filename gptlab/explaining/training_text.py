"""The text that a model has learned from, as far as it is searched and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptlab.data.chat import sources
from gptlab.data.pieces import Piece
from gptlab.evaluation.candidates import choose_text
from gptlab.evaluation.eval_data import Source
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError

MOST_CHARACTERS = 20_000_000  # which take some seconds


@dataclass(frozen=True)
class TrainingText:
    """The beginning of the training part of a text."""

    source: Source
    pieces: list[Piece]
    words: str
    """What it is."""


def open_training_text(opened: OpenedModel[Model], data: str | None) -> TrainingText:
    """Open the training part of the text that a run was trained on, or of another.

    Args:
        opened: the model.
        data: the name of a text, a file or a folder, as evaluate's --data; None: the run's own.

    Raises:
        UserError: the text cannot be had, has changed, or the model does not say what it is.
    """
    if data is None and opened.data.get("name") in sources.NAMES:
        raise UserError(
            f"{opened.name} learned from conversations (data={opened.data['name']}), which are no text; give a text "
            f"with --data NAME_OR_FILE"
        )
    text = choose_text(data, "train", [opened], {}, False, opened.name)
    pieces = text.source.pieces("train", MOST_CHARACTERS)
    count = sum(len(piece.text) for piece in pieces)
    name = Path(text.name).name  # of a file without its folders
    words = f"the training part of {name} ({count:,} characters)"
    if count == MOST_CHARACTERS:
        words = f"the first {count:,} characters of the training part of {name}"
    return TrainingText(text.source, pieces, words)
