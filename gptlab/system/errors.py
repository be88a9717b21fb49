"""The kind of error that a user can fix: shown as a message without a traceback, with exit code 1."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something typed, or something about this machine, is wrong; the message names it and says what to do."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return the end of a message about a word that is not among `words`: the closest of them, or all."""
    known = [each for each in words if each != word]
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"


def quoted(characters: list[str], most: int = 20) -> str:
    """Return the first `most` characters in quotes, for a message."""
    return " ".join(map(repr, characters[:most])) + (" ..." if len(characters) > most else "")


@contextmanager
def command_line() -> Iterator[None]:
    """End a command on errors: a UserError becomes one message and exit code 1, Ctrl-C exit code 130."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:  # the reader, e.g. head, has closed the pipe
        sys.stderr.close()
