"""The passages of a text that stand word for word in the training text: where, how often, and between what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gptlab.evaluation.memorisation import SEAM, SOURCE_SEAM, Copies, find_copies
from gptlab.explaining.training_text import TrainingText
from gptlab.system.errors import UserError

SHOWN, SHORTEST = 10, 6  # passages, and the characters of one
AROUND = 40  # characters of context on each side
STRETCHES = 20  # of held-out text, for comparison


def find_passages(text: str, training: TrainingText) -> dict[str, Any]:
    """Find the longest matches of a text in the training text.

    Returns:
        "longest", in characters; "spans" [text, length], which make the text, with the length of the longest match in
        which each lies; "passages", the longest ones, which do not overlap; and "held_out", the longest match of
        each of up to `STRETCHES` stretches of held-out text as long as this text, or None if there is none.
    """
    joined = "".join(piece.text + SOURCE_SEAM * piece.last for piece in training.pieces)
    found = find_copies(text, [joined])
    shown = [copy for copy in found.top(SHOWN) if len(copy.text) >= SHORTEST]
    return {
        "longest": found.longest,
        "spans": spans(text, found),
        "passages": [{"text": copy.text, "begin": copy.begin, **places(copy.text, joined)} for copy in shown],
        "held_out": held_out_matches(len(text), training, joined),
    }


def places(passage: str, source: str) -> dict[str, Any]:
    """Return how often a passage stands in a source, occurrences that overlap among them, and where the first does."""
    first = at = source.index(passage)
    count = 0
    while at >= 0:
        count, at = count + 1, source.find(passage, at + 1)
    end = first + len(passage)
    before, after = source[max(first - AROUND, 0) : first], source[end : end + AROUND]
    return {
        "count": count,
        "character": first,
        "line": source.count("\n", 0, first) + 1,
        "before": before.rpartition(SOURCE_SEAM)[2],
        "after": after.partition(SOURCE_SEAM)[0],
    }


def spans(text: str, found: Copies) -> list[tuple[str, int]]:
    """Cut a text where the length of the longest match in which its characters lie changes."""
    longest = np.zeros(len(text), dtype=np.int64)
    for copy in found.found:
        covered = slice(copy.begin, copy.begin + len(copy.text))
        longest[covered] = np.maximum(longest[covered], len(copy.text))
    cuts = [0, *(np.flatnonzero(np.diff(longest)) + 1).tolist(), len(text)]
    return [(text[begin:end], int(longest[begin])) for begin, end in pairwise(cuts) if begin < end]


def held_out_matches(length: int, training: TrainingText, joined: str) -> list[int] | None:
    """Return the longest match of stretches of held-out text, which lie evenly in its beginning, sorted."""
    try:
        pieces = training.source.pieces("val", len(joined))
    except UserError:  # ids without a text
        return None
    held_out = "".join(piece.text for piece in pieces)
    count = min(STRETCHES, len(held_out) // length)
    starts: Sequence[int] = np.linspace(0, len(held_out) - length, count).astype(int).tolist() if count else ()
    stretches = [held_out[start : start + length] for start in starts]
    if not stretches:
        return None
    found = find_copies(SEAM.join(stretches), [joined])
    longest = [0] * count
    for copy in found.found:
        place = copy.begin // (length + 1)
        longest[place] = max(longest[place], len(copy.text))
    return sorted(longest)
