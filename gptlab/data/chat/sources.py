"""The examples to learn from, by name: rows of your files, and generated ones whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from gptlab.data import corpora
from gptlab.data.chat.arithmetic import Arithmetic
from gptlab.data.chat.continuations import Continuations
from gptlab.data.chat.conversations import Conversation, Example, read_examples
from gptlab.data.chat.example_set import CONVERSATIONS, FORMS, LABELS, ExampleSet, check_form, content
from gptlab.data.chat.instructions import Instructions
from gptlab.data.chat.labels import Labels
from gptlab.data.chat.splitting import HELD_OUT, TRAIN
from gptlab.data.config import DataConfig
from gptlab.data.find_files import find_texts
from gptlab.data.split import LAST_FILE, SPLITS, Split
from gptlab.system.errors import UserError, amount, did_you_mean
from gptlab.system.files import expand_user

NAMES = ("chat", *(name for form in FORMS.values() for name in form.names))
MOST_HELD_OUT = 100_000  # problems that are kept for validation and test


def load(config: DataConfig, form: str = CONVERSATIONS) -> ExampleSet:
    """Return the examples that `data` names.

    Those of data=preferences are sampled from a model, and not here: see `preference_prompts`.

    Args:
        form: what the task learns from, one of `FORMS`.

    Raises:
        UserError: there is no such data set, it cannot be read or has another form, or a part has no examples; there
            is one label only, or a label that the training part lacks.
    """
    check_form(config.name, form)
    if config.name in NODES:
        return GENERATED[config.name](config)
    if not config.paths:
        raise UserError("data=chat needs a file: add data.path=my.jsonl")
    found = find_texts([expand_user(path) for path in config.paths], config.reading)
    split = Split(config.split, config.val_fraction, config.test_fraction)
    if split.by == LAST_FILE:
        found = found.with_last_held_out()
        if "val" not in found.parts:
            raise UserError(
                f"data.split={LAST_FILE}: holds out the last of several files, and there is one to learn from; use "
                f"data.split=position"
            )
    names = split.names(found.parts)
    if not found.parts:
        parts = _divide(_rows([file.path for file in found.files], config, form), split)
    else:
        of_part = {part: [file.path for file in found.files if file.part == part] for part in found.parts}
        parts = {part: _rows(paths, config, form) for part, paths in of_part.items()}
        if "val" not in parts:  # cut off, as of a text
            parts = _divide(parts["train"], split) | {"test": parts.get("test", [])}
    for name in names:
        if not parts.get(name):
            raise UserError(f"data=chat: the {name} part has no {FORMS[form].noun}; give more of them")
    examples = ExampleSet("chat", form, {name: parts[name] for name in names}, known=False)
    if form == LABELS:
        _check_classes(examples, found.parts)
    return examples


def _rows(paths: Sequence[Path], config: DataConfig, form: str) -> list[Any]:
    """Return the first examples of files, `max_documents` at most."""
    examples = read_examples(paths, config.reading)
    if not all(isinstance(each, FORMS[form].kind) for each in examples.rows):
        others = next(each.tasks for each in FORMS.values() if isinstance(examples.rows[0], each.kind))
        raise UserError(
            f"{examples.rows[0].where}: rows of {' + '.join(examples.form)} are for {others}; {FORMS[form].tasks} "
            f"{FORMS[form].verb} from rows of {FORMS[form].rows}"
        )
    return examples.rows[: config.max_documents]


def _divide(rows: list[Any], split: Split) -> dict[str, list[Any]]:
    """Divide examples by their place, or by the hash of what is said; of preferences, of the prompt."""
    if split.by == "document":
        found: dict[str, list[Any]] = {name: [] for name in SPLITS}
        for row in rows:
            found[split.of_document(json.dumps(content(row)[0]).encode())].append(row)
        return found
    ends = split.ends(len(rows))
    return {name: rows[begin:end] for name, begin, end in zip(SPLITS, (0, *ends), ends, strict=False)}


def _check_classes(examples: ExampleSet, named: Collection[str] = ()) -> None:
    """Refuse labelled texts from which two classes cannot be told apart.

    Args:
        named: the parts that are files of their own, whose rows no other division puts elsewhere.
    """
    classes, longer = examples.classes, "give a longer text" if examples.name in NODES else ""
    if len(classes) < 2:
        mixed = "" if "val" in named else ", in mixed order, or data.split=document"
        raise UserError(
            f"data={examples.name}: all {len(examples.parts['train']):,} rows of the training part have the label "
            f"{classes[0]!r:.99}; {longer or f'give rows of at least two{mixed}'}"
        )
    for part, rows in examples.parts.items():
        mixed = "mix the rows, give more of it, or data.split=document"
        way = longer or ("add rows of it to the training files" if part in named else mixed)
        for each in rows:
            if each.label not in classes:
                raise UserError(
                    f"{each.where or f'data={examples.name}'}: the label {each.label!r:.99} is in the {part} part, and "
                    f"in no row of the training part, so that it cannot be learned; {way}"
                )


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


@dataclass(frozen=True, kw_only=True)
class OfText:
    """What is known of every data set that is made from a text."""

    text_share: float = 1.0
    """Of the text, by its beginning, what is read."""


@dataclass(frozen=True)
class InstructionsNode(OfText):
    """`data.problems` of data=instructions."""

    seed: int
    """See `Instructions`, as of the next one."""
    held_out: float
    examples: int
    """How many instructions the training part has at most."""

    def made(self, text: str = "") -> Instructions:
        """Return the instructions of a text; raises UserError if a value is out of range."""
        return Instructions(text, self.seed, self.held_out)


@dataclass(frozen=True)
class ContinuationsNode(OfText):
    """`data.problems` of data=continuations."""

    seed: int
    """See `Continuations`, as of the next two."""
    held_out: float
    characters: int
    examples: int
    """How many lines the training part has at most."""

    def made(self, text: str = "") -> Continuations:
        """Return the lines of a text; raises UserError if a value is out of range."""
        return Continuations(text, self.seed, self.held_out, self.characters)


@dataclass(frozen=True)
class LabelsNode(OfText):
    """`data.problems` of data=labels."""

    task: str
    """See `Labels`, as of the next two."""
    seed: int
    held_out: float
    examples: int
    """How many lines the training part has at most."""

    def made(self, text: str = "") -> Labels:
        """Return the labelled lines of a text; raises UserError if a value is out of range."""
        return Labels(self.task, text, self.seed, self.held_out)


@dataclass(frozen=True)
class PreferencesNode(OfText):
    """`data.problems` of data=preferences."""

    seed: int
    """See `Continuations`, whose prompts these are, as of the next two; and of what is sampled and preferred."""
    held_out: float
    characters: int
    pairs: int
    """How many pairs there are for training."""
    held_out_pairs: int
    """How many there are for validation and test, of prompts that are held out."""
    temperature: float
    """At which answers are sampled."""
    answer_tokens: int
    """The most tokens of a sampled answer, its end included."""
    reward: str
    """The gold reward, see `alignment.rewards.open_reward`, and its argument."""
    argument: str | None
    noise: float
    """The temperature of the labels after Bradley and Terry; 0: the answer with the higher reward is preferred."""

    def made(self, text: str = "") -> Continuations:
        """Return the lines of a text; raises UserError if a value is out of range. Rewards are checked elsewhere."""
        for key, least in {"pairs": 1, "held_out_pairs": 2, "answer_tokens": 2, "noise": 0}.items():
            if not getattr(self, key) >= least:
                raise UserError(f"{key}={getattr(self, key)}: must be at least {least}")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be above 0, or both answers would be the same")
        return Continuations(text, self.seed, self.held_out, self.characters)


Node = ArithmeticNode | InstructionsNode | ContinuationsNode | LabelsNode | PreferencesNode
NODES: dict[str, type[Node]] = {
    "arithmetic": ArithmeticNode,
    "instructions": InstructionsNode,
    "continuations": ContinuationsNode,
    "labels": LabelsNode,
    "preferences": PreferencesNode,
}


def check_problems(name: str, node: Any) -> Node:
    """Return the checked node `data.problems` of a data set.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    known = {each.name: str(each.type) for each in fields(NODES[name])}
    optional = {each.name for each in fields(NODES[name]) if each.default is not MISSING}
    node = node or {}
    for key in node:
        if key not in known:
            raise UserError(f"data.problems.{key}={node[key]}: there is no such key; {did_you_mean(str(key), known)}")
    kinds: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "int | None": (int, type(None)),
        "str | None": (str, type(None)),
    }
    for key, kind in known.items():
        if key not in node:
            if key in optional:
                continue
            raise UserError(f"data.problems.{key}: is missing; data={name} has it")
        if isinstance(node[key], bool) or not isinstance(node[key], kinds[kind]):
            raise UserError(f"data.problems.{key}={node[key]}: must be of type {kind}")
    if (most := node.get("examples")) is not None and most < 1:
        raise UserError(f"data.problems.examples={most}: must be at least 1")
    if not 0 < (share := node.get("text_share", 1)) <= 1:
        raise UserError(f"data.problems.text_share={share}: must be above 0, and at most 1 for the whole text")
    found = NODES[name](**node)
    try:
        found.made()
    except UserError as error:
        raise UserError(f"data.problems.{error}") from None
    return found


def _arithmetic(config: DataConfig) -> ExampleSet:
    asked = check_problems("arithmetic", config.problems)
    assert isinstance(asked, ArithmeticNode)
    made = asked.made()
    train = made.some(TRAIN, asked.examples)
    if not train:
        raise UserError(
            f"data=arithmetic: the training part has no problems; lower data.problems.held_out={asked.held_out}, or "
            f"raise data.problems.digits={asked.digits}"
        )
    parts = {"train": train, **divide_held_out(made.some(HELD_OUT, MOST_HELD_OUT), config)}
    return ExampleSet("arithmetic", CONVERSATIONS, parts, known=True)


def _of_text(config: DataConfig) -> ExampleSet:
    """Return what is made from a text: data=instructions, data=continuations or data=labels."""
    asked = check_problems(config.name, config.problems)
    assert isinstance(asked, InstructionsNode | ContinuationsNode | LabelsNode)
    made = asked.made(_text(config, asked.text_share))
    train = made.some(TRAIN, asked.examples)
    what, known = FOUND[config.name]
    if not train:
        raise UserError(f"data={config.name}: the text has no {what}")
    parts = {"train": train, **divide_held_out(made.some(HELD_OUT, MOST_HELD_OUT), config)}
    form = LABELS if config.name in FORMS[LABELS].names else CONVERSATIONS
    examples = ExampleSet(config.name, form, parts, known)
    if form == LABELS:
        _check_classes(examples)
    return examples


FOUND: dict[str, tuple[str, bool]] = {
    "instructions": ("words, lines or speeches to make instructions of", True),
    "continuations": ("lines with others after them", False),
    "labels": ("lines of at most 64 characters that such labels could be made of", True),
}
"""Of what is made from a text: what that must have, and whether there is one right answer."""
GENERATED: dict[str, Callable[[DataConfig], ExampleSet]] = {"arithmetic": _arithmetic, **dict.fromkeys(FOUND, _of_text)}


def preference_prompts(config: DataConfig) -> dict[str, list[Conversation]]:
    """Return the prompts of data=preferences in the parts train and held_out, each with the text's own answer.

    Raises:
        UserError: `data.problems` is wrong, or a part has no prompts.
    """
    asked = check_problems("preferences", config.problems)
    assert isinstance(asked, PreferencesNode)
    made = asked.made(_text(config, asked.text_share))
    sizes = {TRAIN: asked.pairs, HELD_OUT: asked.held_out_pairs}
    found = {part: made.some(part, most) for part, most in sizes.items()}
    for part, prompts in found.items():
        if not prompts:
            raise UserError(
                f"data=preferences: the text has no lines with others after them in the part {part}; give a longer "
                f"one, or another data.problems.held_out={asked.held_out}"
            )
    return found


def _text(config: DataConfig, share: float) -> str:
    """Return the first `share` of the text at data.path, or of Tiny Shakespeare."""
    folders = config.folder("dir"), config.folder("cache_dir")
    corpus = corpora.load("text" if config.paths else "auto", config.paths, *folders, options=config.reading)
    text = "".join(piece.text for piece in corpus.read())
    return text[: round(share * len(text))]


def divide_held_out(problems: Sequence[Example], config: DataConfig) -> dict[str, list[Any]]:
    """Divide the problems that are held out into val and test."""
    first = max(int(config.val_fraction * len(problems)), 1)
    if len(problems) < 2:  # with two, each part has one, whatever data.val_fraction is
        other = "held_out_pairs" if "held_out_pairs" in config.problems else "digits"
        more = f"data.problems.{other}={config.problems[other]}" if other in config.problems else "give a longer text"
        raise UserError(
            f"data={config.name}: {amount(len(problems), 'example')} held out, too few for a validation and a test "
            f"part; raise data.problems.held_out={config.problems['held_out']}, or {more}"
        )
    return {"val": [*problems[:first]], "test": [*problems[first:]]}
