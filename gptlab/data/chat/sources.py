"""The conversations to learn from, by name: rows of your files, and problems whose answers are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gptlab.data import corpora
from gptlab.data.chat.arithmetic import Arithmetic
from gptlab.data.chat.conversations import Conversation, read_examples
from gptlab.data.chat.instructions import Instructions, task_of
from gptlab.data.chat.splitting import HELD_OUT, TRAIN
from gptlab.data.config import DataConfig
from gptlab.data.find_files import find_texts
from gptlab.data.split import SPLITS, Split
from gptlab.system.errors import UserError, amount, did_you_mean
from gptlab.system.files import expand_user

NAMES = ("chat", "arithmetic", "instructions")
MOST_HELD_OUT = 100_000  # problems that are kept for validation and test


@dataclass(frozen=True)
class Conversations:
    """Conversations in the parts of a data set."""

    name: str
    parts: dict[str, list[Conversation]]
    """train, val and perhaps test."""
    known: bool
    """Whether each prompt has one right answer."""
    kind: Callable[[str], str] | None = None
    """Names the kind of a prompt; None: there is one kind only."""

    def texts(self, part: str) -> Iterator[str]:
        """Yield what is said in a part."""
        return (message.content for each in self.parts[part] for message in each.messages)

    def sha256(self) -> str:
        """Return a hash of all that is said, by whom, and of what is only given."""
        said = {part: [(each.messages, each.given) for each in rows] for part, rows in self.parts.items()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def in_words(self) -> str:
        """Return how many conversations each part has."""
        names = {"train": "training", "val": "validation", "test": "test"}
        counts = [f"{len(rows):,} {names[part]}" for part, rows in self.parts.items()]
        return f"{', '.join(counts[:-1])} and {counts[-1]} conversations of {self.name}"


def load(config: DataConfig) -> Conversations:
    """Return the conversations that `data` names.

    Raises:
        UserError: there is no such set of conversations, its files cannot be read or have another form, or a part has
            none.
    """
    if config.name in NODES:
        return {"arithmetic": _arithmetic, "instructions": _instructions}[config.name](config)
    if config.name != "chat":
        raise UserError(
            f"data.name={config.name}: a text, and task=sft learns from conversations; give data=chat "
            f"data.path=my.jsonl, data=arithmetic or data=instructions"
        )
    if not config.paths:
        raise UserError("data=chat needs a file: add data.path=my.jsonl")
    found = find_texts([expand_user(path) for path in config.paths], config.reading)
    split = Split(config.split, config.val_fraction, config.test_fraction)
    names = split.names(found.parts)
    if not found.parts:
        parts = _divide(_rows([file.path for file in found.files], config), split)
    else:
        of_part = {part: [file.path for file in found.files if file.part == part] for part in found.parts}
        parts = {part: _rows(paths, config) for part, paths in of_part.items()}
        if "val" not in parts:  # cut off, as of a text
            parts = _divide(parts["train"], split) | {"test": parts.get("test", [])}
    for name in names:
        if not parts.get(name):
            raise UserError(f"data=chat: the {name} part has no conversations; give more of them")
    return Conversations("chat", {name: parts[name] for name in names}, known=False)


def _rows(paths: Sequence[Path], config: DataConfig) -> list[Conversation]:
    """Return the first conversations of files, `max_documents` at most."""
    examples = read_examples(paths, config.reading)
    if not all(isinstance(each, Conversation) for each in examples.rows):
        raise UserError(
            f"{examples.rows[0].where}: rows of {' + '.join(examples.form)} are not for task=sft, which learns from "
            f"messages, or from prompt + completion"
        )
    return examples.rows[: config.max_documents]


def _divide(rows: list[Conversation], split: Split) -> dict[str, list[Conversation]]:
    """Divide conversations by their place, or by the hash of what is said."""
    if split.by == "document":
        found: dict[str, list[Conversation]] = {name: [] for name in SPLITS}
        for row in rows:
            found[split.of_document(json.dumps(row.messages).encode())].append(row)
        return found
    ends = split.ends(len(rows))
    return {name: rows[begin:end] for name, begin, end in zip(SPLITS, (0, *ends), ends, strict=False)}


@dataclass(frozen=True)
class ArithmeticNode:
    """`data.problems` of data=arithmetic."""

    task: str
    """See `Arithmetic`, as of the next three."""
    digits: int
    seed: int
    held_out: float
    examples: int | None
    """How many problems the training part has at most; None: all that are not held out."""

    def made(self) -> Arithmetic:
        """Return the problems; raises UserError if a value is out of range."""
        return Arithmetic(self.task, self.digits, self.seed, self.held_out)


@dataclass(frozen=True)
class InstructionsNode:
    """`data.problems` of data=instructions."""

    seed: int
    """See `Instructions`, as of the next one."""
    held_out: float
    examples: int
    """How many instructions the training part has at most."""

    def made(self, text: str = "") -> Instructions:
        """Return the instructions of a text; raises UserError if a value is out of range."""
        return Instructions(text, self.seed, self.held_out)


NODES: dict[str, type[ArithmeticNode] | type[InstructionsNode]] = {
    "arithmetic": ArithmeticNode,
    "instructions": InstructionsNode,
}


def check_problems(name: str, node: Any) -> ArithmeticNode | InstructionsNode:
    """Return the checked node `data.problems` of a data set.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    known = {each.name: str(each.type) for each in fields(NODES[name])}
    node = node or {}
    for key in node:
        if key not in known:
            raise UserError(f"data.problems.{key}={node[key]}: there is no such key; {did_you_mean(str(key), known)}")
    kinds: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "int | None": (int, type(None))}
    for key, kind in known.items():
        if key not in node:
            raise UserError(f"data.problems.{key}: is missing; data={name} has it")
        if isinstance(node[key], bool) or not isinstance(node[key], kinds[kind]):
            raise UserError(f"data.problems.{key}={node[key]}: must be of type {kind}")
    if (most := node["examples"]) is not None and most < 1:
        raise UserError(f"data.problems.examples={most}: must be at least 1")
    found = NODES[name](**node)
    try:
        found.made()
    except UserError as error:
        raise UserError(f"data.problems.{error}") from None
    return found


def _arithmetic(config: DataConfig) -> Conversations:
    asked = check_problems("arithmetic", config.problems)
    assert isinstance(asked, ArithmeticNode)
    made = asked.made()
    parts = {"train": made.some(TRAIN, asked.examples), **_held_out(made.some(HELD_OUT, MOST_HELD_OUT), config)}
    return Conversations("arithmetic", parts, known=True)


def _instructions(config: DataConfig) -> Conversations:
    asked = check_problems("instructions", config.problems)
    assert isinstance(asked, InstructionsNode)
    folders = config.folder("dir"), config.folder("cache_dir")
    corpus = corpora.load("text" if config.paths else "auto", config.paths, *folders, options=config.reading)
    made = asked.made("".join(piece.text for piece in corpus.read()))
    parts = {"train": made.some(TRAIN, asked.examples), **_held_out(made.some(HELD_OUT, MOST_HELD_OUT), config)}
    if not parts["train"]:
        raise UserError("data=instructions: the text has no words, lines or speeches to make instructions of")
    return Conversations("instructions", parts, known=True, kind=task_of)


def _held_out(problems: list[Conversation], config: DataConfig) -> dict[str, list[Conversation]]:
    """Divide the problems that are held out into val and test."""
    first = max(int(config.val_fraction * len(problems)), 1)
    if len(problems) <= first:
        raise UserError(
            f"data.problems.held_out={config.problems['held_out']}: {amount(len(problems), 'problem')} are too few for "
            f"a validation and a test part; raise it, or data.val_fraction={config.val_fraction}"
        )
    return {"val": problems[:first], "test": problems[first:]}
