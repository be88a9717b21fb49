"""README.md and docs/ are true as far as a program can tell: their commands, links, pictures, paths and lengths."""

from __future__ import annotations

import importlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from gptlab.runs.words import readable

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
INDEX = ROOT / "docs" / "lessons" / "README.md"
CHAPTERS = sorted(path for path in INDEX.parent.glob("*.md") if path != INDEX)
PAGES = [*sorted((ROOT / "docs").glob("*.md")), INDEX, *CHAPTERS]
LONG = ("results", "lab-book")  # pages that may have any number of lines
ALL = [README, *PAGES, ROOT / "outputs" / "README.md"]
EVERY = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))

FENCE = re.compile(r"^```")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDERS = {  # what a reader puts in their place
    r"<time>": "2026-11-20_12-00-00-000000",
    r"<N>": "9",
    r"\bSEED\b": "1",
    r"=N\b": "=9",
}


# Reading a page


def sections(text: str) -> tuple[list[str], list[str]]:
    """The lines outside and inside of fenced blocks; in place of a line of the other kind stands an empty one."""
    outside, inside, fenced = [], [], False
    for line in text.splitlines():
        if FENCE.match(line):
            fenced = not fenced
            line = ""
        outside.append("" if fenced else line)
        inside.append(line if fenced else "")
    assert not fenced, "a fenced block has no end"
    return outside, inside


def words_of(line: str) -> list[str]:
    """The words of a line as a shell reads it, without its comment; what separates commands is a word."""
    for placeholder, value in PLACEHOLDERS.items():
        line = re.sub(placeholder, value, line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    return list(lexer)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every line of a fenced block and every piece of code in a sentence that calls a module, gptlab or make."""
    outside, inside = sections(text)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(inside)).splitlines()
    spans = [span.replace("\\|", "|") for span in CODE.findall("\n".join(outside))]
    for line in [*lines, *spans]:
        if re.search(r"-m (gptlab|tests)\.|(^|\s)(gptlab|make|pytest) [\w'-]", line):
            words: list[str] = []
            for word in [*words_of(line), ";"]:
                if not set(word) <= set("|&;<>"):
                    words.append(word)
                    continue
                if words:
                    yield line, words
                words = []


def called(words: list[str]) -> tuple[str, list[str]] | None:
    """The module that a command calls, and its arguments; None if it calls none."""
    for place, word in enumerate(words):
        if place and words[place - 1] == "-m" and word.startswith(("gptlab.", "tests.")):
            return word, words[place + 1 :]
    if words[0] == "gptlab" and len(words) > 1 and not words[1].startswith("-"):
        return f"gptlab.{words[1]}", words[2:]
    return None


# What a command means


def completed(words: list[str]) -> list[str]:
    """As gptlab.train completes a typed init_from: with the model and the tokenizer of the trained model."""
    keys = {word.partition("=")[0] for word in words}
    if "init_from" not in keys:
        return words
    model = [] if {"model", "experiment"} & keys else ["model=pretrained"]
    tokenizer = [] if "tokenizer" in keys else ["tokenizer=pretrained"]
    return [*model, *tokenizer, *words]


def values(override: Override) -> list[str]:
    """The words that an override stands for, one for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    found = [f"{key}={each}" for each in override.sweep_string_iterator()]
    return found[:1] if key == "seed" else found


def compositions(words: list[str]) -> list[list[str]]:
    """The command lines of single runs in which each value of a sweep is composed at least once."""
    sweep = "-m" in words or any(word.startswith("sweep=") for word in words)
    flags = ("-m", "--help", "--hydra-help", "--cfg", "job")
    axes = [values(o) for o in OverridesParser.create().parse_overrides([w for w in words if w not in flags])]
    assert sweep or all(len(axis) == 1 for axis in axes), "several values of a key need -m or sweep="
    if "sweep.method=one_at_a_time" in words:
        first = [axis[0] for axis in axes]
        return [first, *([*first[:i], each, *first[i + 1 :]] for i, axis in enumerate(axes) for each in axis[1:])]
    return [[axis[min(turn, len(axis) - 1)] for axis in axes] for turn in range(max(map(len, axes), default=1))]


def check(words: list[str], compose: Any, bare: bool) -> None:
    """That a command can be called so.

    Args:
        bare: the name of a command in a sentence, such as `python -m gptlab.evaluate`, may lack its arguments.
    """
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        arguments = [word.partition("=")[2] for word in words if word.startswith("ARGS=")]
        unknown = {word for word in words[1:] if "=" not in word} - set(targets)
        assert not unknown, f"the Makefile has no target {unknown}"
        if arguments and words[1] in ("train", "bench"):
            check(["-m", f"gptlab.{words[1]}", *shlex.split(arguments[0])], compose, bare)
        return
    if (call := called(words)) is None:
        return
    module, arguments = call
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert file.is_file(), f"there is no {module}"
    if module == "gptlab.train":
        for overrides in compositions(readable(arguments)):
            compose(*completed(overrides))
    elif module.count(".") == 1 and module.startswith("gptlab.") and not (bare and not arguments):
        parsed = importlib.import_module(module).parser().parse_intermixed_args(arguments)
        if module in ("gptlab.bench", "gptlab.prepare"):
            compose(*completed(parsed.overrides))


@EVERY
def test_every_command_composes_or_parses(page: Path, compose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    _, inside = sections(text)
    wrong = []
    for line, words in commands(text):
        try:
            check(words, compose, bare=line not in inside)
        except SystemExit as stop:
            if stop.code:  # --help is none
                wrong.append(f"{line}\n    {capsys.readouterr().err}")
        except Exception as error:
            wrong.append(f"{line}\n    {error}")
    assert not wrong, "\n".join(["", *wrong])


# Links and paths


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    found: Counter[str] = Counter()
    names = set()
    for line in sections(page.read_text())[0]:
        if heading := re.match(r"#+ +(.*)", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
            names.add(f"{name}-{found[name]}" if found[name] else name)
            found[name] += 1
    return names


@EVERY
def test_every_relative_link_and_picture_is_there(page: Path) -> None:
    wrong = []
    for link in LINK.findall(CODE.sub("", "\n".join(sections(page.read_text())[0]))):
        place, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def test_every_path_of_the_checkout_that_is_named_is_there() -> None:
    """Files and folders in backticks, such as those that a page ends with."""
    wrong = []
    for page in ALL:
        spans = CODE.findall("\n".join(sections(page.read_text())[0]))
        paths = [word for span in spans for word in span.split()]
        named = [path for path in paths if re.match(r"(gptlab|conf|tests|docs)/[\w/.-]*$", path)]
        wrong += [f"{page.name}: {path}" for path in named if not (ROOT / path).exists()]
    assert not wrong, "\n".join(["", *wrong])


# Form


def test_the_readme_links_to_every_page() -> None:
    pages = {str(page.relative_to(ROOT)) for page in PAGES if page not in CHAPTERS}
    assert pages <= set(LINK.findall(README.read_text()))


def test_the_lessons_link_to_every_chapter() -> None:
    assert {page.name for page in CHAPTERS} <= set(LINK.findall(INDEX.read_text()))


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


@PAGE
def test_a_page_is_short_begins_with_a_command_and_ends_with_where_its_code_is(page: Path) -> None:
    text = page.read_text()
    outside, inside = sections(text)
    assert page.stem in LONG or len(outside) <= 200
    headings = [number for number, line in enumerate(outside) if line.startswith("#")]
    first = next(number for number, line in enumerate(inside) if line)
    assert headings[0] == 0
    assert len(headings) == 1 or first < headings[1]
    assert text.rstrip().rpartition("\n")[2].startswith("Code:")
