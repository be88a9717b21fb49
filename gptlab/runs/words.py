"""Read the words of a command line as a shell hands them over, before Hydra's grammar sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gptlab.system.errors import UserError
from gptlab.system.files import expand_user
from gptlab.system.terminal import single_quoted

PATHS = ("data.path", "data.dir", "data.cache_dir", "init_from", "resume", "hydra.run.dir", "sweep.dir")
TEXTS = (*PATHS, "name", "data.text_key", "data.separator", "data.subset", "data.revision", "trainer.sample_prompt")

WORD = re.compile(r"(\+{0,2}[\w./@$-]+)=(.*)", re.DOTALL)
FUNCTION = "|".join(create_functions().functions)  # choice, range, interval, ...
OPENING = re.compile(rf"\s*(?:[\[{{]|(?:{FUNCTION})\s*\()")
NAMED = re.compile(r"(\s*[\w.]+\s*[:=])(.*)", re.DOTALL)  # of a dict or a function
QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
SPACE = " \t"  # which Hydra drops around a value; a new line is a letter
PRINTED_QUOTES = "“”„‟«»‘’‚‹›"  # noqa: RUF001

_parser = OverridesParser.create()


def readable(words: Sequence[str]) -> list[str]:
    """Return the words of a command line in Hydra's grammar; flags, and what is no key=value, as they are.

    A value that Hydra cannot read, such as Café.txt or ~/my.txt, is a string, and quoted; so is each that stands in a
    choice, a list, a dict or a function. What Hydra can read is left alone, and so is what is opened and never closed.
    But a number, such as 1e3, is a string where the key is one of `TEXTS`.

    Raises:
        UserError: a value is empty, as of a variable that the shell does not know, or in quotes from a text processor;
            or a word is no Unicode, or ends as the lines of Windows do.
    """
    found = []
    for number, word in enumerate(words):
        if word.endswith("\r"):
            raise UserError(f"{word!r}: ends in a carriage return; save the script with the line ends of Unix")
        if not is_unicode(word):
            raise UserError(f"{word!r}: has bytes that are no UTF-8; rename the file, or set PYTHONUTF8=1")
        if number and words[number - 1] in ("-cd", "--config-dir"):
            found.append(_folder(words[number - 1], word))
        elif word.startswith("--config-dir="):
            found.append(f"--config-dir={_folder('--config-dir', word.partition('=')[2])}")
        else:
            found.append(spelled(word))
    return found


def spelled(word: str) -> str:
    """Return one key=value in Hydra's grammar, see `readable`."""
    if not (match := WORD.fullmatch(word)):
        return word
    key, value = match[1], match[2]
    name = key.lstrip("+")
    if not value.strip(SPACE) or (name in PATHS and value in ("''", '""')):
        raise UserError(
            f"{key}=: is empty (a variable that the shell does not know?); give a value, or leave {name} out"
        )
    if name in PATHS and {value[0], value[-1]} & set(PRINTED_QUOTES):
        raise UserError(f"{word}: has quotes that a shell does not know; type them anew, as ' or \"")
    if name == "hydra.run.dir" and value.lstrip("'\"").startswith("~"):  # Hydra would make a folder named ~
        folder = value[1:-1] if QUOTED.fullmatch(value) else value
        return f"{key}={single_quoted(str(expand_user(folder)))}"
    if not is_read(f"{key}=1"):
        return word
    if name in TEXTS:
        return f"{key}={','.join(map(_text, _split(value)))}"
    return word if is_read(word) else f"{key}={','.join(map(_element, _split(value)))}"


@cache
def is_read(word: str) -> bool:
    """Return whether Hydra's grammar can read a key=value."""
    try:
        _parser.parse_override(word)
    except (HydraException, OmegaConfBaseException):  # the latter of a choice in a choice
        return False
    return True


def bare(value: str) -> str:
    """Return a value that `spelled` has quoted as it was typed; any other as it is."""
    if not QUOTED.fullmatch(value):
        return value
    text = str(_parser.parse_override(f"x={value}").value())
    return text if not is_read(f"x={text}") and spelled(f"x={text}") == f"x={value}" else value


def is_unicode(text: str) -> bool:
    """Return whether a word of a command line was valid UTF-8; Python keeps other bytes as lone surrogates."""
    return not re.search("[\ud800-\udfff]", text)


def _folder(flag: str, folder: str) -> str:
    if not folder.strip():
        raise UserError(f"{flag}: is empty (a variable that the shell does not know?); give a folder")
    return str(expand_user(folder))


def _element(text: str) -> str:
    """Return a value that is no choice in Hydra's grammar: as it is, or with quotes around what cannot be read."""
    if is_read(f"x={text}"):
        return text
    if opening := OPENING.match(text):
        end = _end(text, opening.end() - 1)
        if end is None:
            return text  # never closed: Hydra refuses it
        if not text[end + 1 :].strip():
            listed = text[opening.start() : opening.end()].lstrip().startswith("[")
            inner = _split(text[opening.end() : end])
            return opening[0] + ",".join(map(_element if listed else _named, inner)) + text[end:]
    core = text.strip(SPACE)
    return text.replace(core, single_quoted(ESCAPED.sub(r"\1", core)), 1)


def _text(text: str) -> str:
    """Return a value of a key of texts in Hydra's grammar: with quotes around a number or a truth value."""
    spelled = _element(text)
    if not is_read(f"x={spelled}"):
        return spelled
    number = isinstance(_parser.parse_override(f"x={spelled}").value(), int | float)
    return single_quoted(text.strip(SPACE)) if number else spelled


def _named(text: str) -> str:
    """Return an entry of a dict or an argument of a function in Hydra's grammar; its name is left alone."""
    match = NAMED.fullmatch(text)
    return match[1] + _element(match[2]) if match else _element(text)


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets and quotes."""
    commas = [place for place, depth in _places(text) if text[place] == "," and depth == 0]
    return [text[start:end] for start, end in zip([0, *(c + 1 for c in commas)], [*commas, len(text)], strict=True)]


def _end(text: str, opening: int) -> int | None:
    """Return where the bracket at `opening` is closed; None if it never is."""
    return next((opening + place for place, depth in _places(text[opening:]) if place and depth == 0), None)


def _places(text: str) -> list[tuple[int, int]]:
    """Return the places of the commas and brackets outside of quotes, each with the depth of brackets after it."""
    found, depth, place = [], 0, 0
    while place < len(text):
        at_start = text[:place].rstrip()[-1:] in ("", *",[({:=")
        if at_start and (match := QUOTED.match(text, place)):
            place = match.end()
            continue
        if match := ESCAPED.match(text, place):
            place = match.end()
            continue
        if text[place] in ",()[]{}":
            depth = max(0, depth + (text[place] in "([{") - (text[place] in ")]}"))
            found.append((place, depth))
        place += 1
    return found
