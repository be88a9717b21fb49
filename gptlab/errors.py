"""The one kind of error that a user can put right: shown as a message without a traceback, exit code 1."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something typed, or something about this machine, is wrong; the message names it and the way out."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message about a word that is none of `words`: the nearest of them, or all."""
    known = [each for each in words if each != word]
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"


def quoted(characters: list[str], most: int = 20) -> str:
    """Characters for a message, the first `most` of them."""
    return " ".join(map(repr, characters[:most])) + (" ..." if len(characters) > most else "")
