"""The kind of error that a user can fix: shown as a message without a traceback, with exit code 1."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gptlab.system import threads
from gptlab.system.streams import flush_output, prepare_streams
from gptlab.system.terminal import harmless


class UserError(ValueError):
    """Something typed, or something about this machine, is wrong; the message names it and says what to do."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return the end of a message about a word that is not among `words`: the closest of them, or all."""
    known = [each for each in words if each != word]
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Check that the value of a key is one of the choices.

    Raises:
        UserError: it is not.
    """
    if value not in (known := tuple(choices)):
        raise UserError(f"{key}={value}: there is no such choice; {did_you_mean(value, known)}")


def amount(count: int, noun: str) -> str:
    """Return a number with its noun for a message: 1 character, 2,000 characters."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def quoted(characters: list[str], most: int = 20) -> str:
    """Return the first `most` characters in quotes, for a message."""
    return " ".join(map(repr, characters[:most])) + (" ..." if len(characters) > most else "")


def error_line(error: BaseException) -> str:
    """Return the type of an error and the beginning of its message, in one line."""
    said, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {said[:200]}"


@contextmanager
def command_line(essential: bool = True, computes: bool = True) -> Iterator[None]:
    """Run a command, and end it on errors: a UserError becomes one message and exit code 1, Ctrl-C exit code 130.

    Args:
        computes: whether this process, and not only those that it starts, uses torch, see `threads.prepare`.
        essential: whether standard output is what the command is for. Then the command ends where the reader of that
            output, e.g. head, has gone, with exit code 0, and where the output cannot be written, as on a full disk,
            with a message and exit code 1. Otherwise neither has any effect on the command.
    """
    prepare_streams(essential)
    if computes:
        threads.prepare()
    code: object = None
    try:
        yield
    except UserError as error:
        code = harmless(f"error: {error}")  # which may quote a file
    except KeyboardInterrupt:
        print()
        code = 130
    except SystemExit as stop:  # argparse, after --help
        code = 0 if stop.code is None else stop.code
    except OSError:
        if flush_output() is None:
            raise
    if (lost := flush_output()) is not None and essential and code in (None, 0, 1):
        code = 0 if isinstance(lost, BrokenPipeError) else f"error: standard output: {lost.strerror}"
    if code is not None:
        sys.exit(code)  # type: ignore[arg-type]
