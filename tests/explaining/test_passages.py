"""Passages of a text are found in the training text with their places, their number and what stands around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.data import corpora
from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.evaluation.eval_data import Source, readable_source
from gptlab.explaining.passages import find_passages, places
from gptlab.explaining.training_text import TrainingText

TRAIN = "the king is here.\nthe queen is here, too, and the king sees the queen.\n"


@pytest.fixture
def training(tmp_path: Path) -> TrainingText:
    """Nine tenths are the training part."""
    held_out = "xyz12345"
    (tmp_path / "my.txt").write_text(TRAIN + held_out)
    corpus = corpora.load("text", [str(tmp_path / "my.txt")], tmp_path, tmp_path, options=TextOptions())
    source: Source = readable_source(corpus, Split("position", len(held_out) / len(TRAIN + held_out), 0.0), tmp_path)
    found = TrainingText(source, source.pieces("train"), "the text")
    assert "".join(piece.text for piece in found.pieces) == TRAIN
    return found


def test_passages_have_their_places(training: TrainingText) -> None:
    text = "Is the queen is here; the king"
    found = find_passages(text, training)
    assert found["longest"] == len("the queen is here")
    assert "".join(part for part, _ in found["spans"]) == text
    lengths = [length for part, length in found["spans"] for _ in part]
    assert lengths[text.index("queen")] == len("the queen is here")
    assert lengths[0] == 0  # the training text has no I
    first, second = found["passages"]
    assert first == {
        "text": "the queen is here",
        "begin": 3,
        "count": 1,
        "character": TRAIN.index("the queen is"),
        "line": 2,
        "before": "the king is here.\n",
        "after": ", too, and the king sees the queen.\n",
    }
    assert (second["text"], second["count"], second["line"]) == (" the king", 1, 2)


def test_occurrences_that_overlap_count_and_no_context_reaches_into_another_document() -> None:
    found = places("aba", "one\1ababab\1two")
    assert (found["count"], found["character"], found["before"], found["after"]) == (2, 4, "", "bab")


def test_held_out_text_shows_what_is_chance(training: TrainingText) -> None:
    assert find_passages("king", training)["held_out"] == [0, 0]
    assert find_passages("the king is here, too", training)["held_out"] is None  # it is longer than what there is
