"""Read and check conversations, labelled texts and preferences from rows of JSON, CSV, Parquet and Arrow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.file_kinds import ROWS, kind_of
from gptlab.data.text_files import Rows, csv_rows, has_text, json_rows, table_rows
from gptlab.data.text_options import DEFAULT, TextOptions
from gptlab.data.tokenizers.base import replace_surrogates
from gptlab.system.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant")
FORMS = (("messages",), ("prompt", "completion"), ("text", "label"), ("prompt", "chosen", "rejected"))
GOLD = ("gold_chosen", "gold_rejected")
MARGIN = "margin"
KEYS = (*dict.fromkeys(key for form in FORMS for key in form), *GOLD, MARGIN)


class Message(NamedTuple):
    """What one side says."""

    role: str
    """One of `ROLES`."""
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """Messages, of which the last is the assistant's."""

    messages: Messages
    given: int = 0
    """How many of the messages are a prompt, in which nothing is to be learnt."""
    where: str = field(default="", compare=False)
    """The file and line that it comes from."""
    kind: str = ""
    """The kind of problem it is, where there are several, each of which has an accuracy of its own."""

    @property
    def asked(self) -> str:
        """What its last message answers: what the user said last, or else the message before."""
        before = self.messages[:-1]
        return next((each.content for each in reversed(before) if each.role == "user"), before[-1].content)


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str | int
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer; the answers begin and end with a message of the assistant."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    where: str = field(default="", compare=False)
    gold: tuple[float, float] | None = None
    """The true rewards of chosen and rejected, where they are known."""
    margin: float | None = None
    """By how much the chosen answer is better, where somebody has said so."""

    @property
    def difference(self) -> float | None:
        """By how much the chosen answer is better: its margin, or else what the true rewards say; None: neither."""
        return self.gold[0] - self.gold[1] if self.margin is None and self.gold else self.margin


Example = Conversation | Labelled | Preference


class Examples(NamedTuple):
    """The rows of one or several files."""

    form: tuple[str, ...]
    """One of `FORMS`."""
    rows: list[Any]
    """`Conversation`s, `Labelled` texts or `Preference`s."""


def read_examples(paths: Iterable[Path], options: TextOptions = DEFAULT) -> Examples:
    """Read files of rows that have one form: `messages` (a list of role and content), `prompt` and `completion`, `text`
    and `label`, or `prompt`, `chosen` and `rejected`.

    A prompt, a completion, a chosen and a rejected answer is a text or a list of messages. Beside the last form,
    `gold_chosen` and `gold_rejected` may tell the true rewards, and `margin` by how much the chosen answer is better.
    Other keys are not read, and null is as good as none, as is an empty field of these numbers in a CSV.

    Raises:
        UserError: a file cannot be read or has no rows, a row has none or two of the forms, or another one than the
            first row; a message has an unknown role, no content, or stands where it cannot; a value is of another type.
    """
    first: tuple[tuple[str, ...], str] | None = None
    examples: list[Example] = []
    for path in paths:
        begin = len(examples)
        kind = kind_of(path, options)
        unit = "row" if kind in ("parquet", "arrow") else "line"
        for number, row in _rows(path, kind, options):
            where = f"{path}, {unit} {number}"
            form = form_of(row, where)
            first = first or (form, where)
            if form != first[0]:
                raise UserError(
                    f"{where}: it has {' + '.join(form)}, and {first[1]} has {' + '.join(first[0])}; put rows of "
                    f"different forms into different files, and give those of one form"
                )
            examples.append(example(form, row, where))
        if len(examples) == begin:
            raise UserError(f"{options.written('path', path)} has no rows")
    if first is None:
        raise UserError("there are no files of conversations; give at least one, e.g. my.jsonl")
    _check_labels(examples)
    return Examples(first[0], examples)


def _rows(path: Path, kind: str, options: TextOptions) -> Rows:
    """Return the rows of a file with their numbers."""
    if kind not in ROWS:
        raise UserError(
            f"{options.written('path', path)} is prose; conversations are rows of .jsonl, .json, .csv, .parquet or "
            f".arrow with {_forms()}"
        )
    if kind == "json":
        return json_rows(path, options)
    if kind == "csv":
        keys = (replace(options, text_key=form[0]) for form in FORMS[1:3])
        return csv_rows(path, next((each for each in keys if has_text(path, kind, each)), options))
    return table_rows(path, kind, options, KEYS)


def _forms() -> str:
    return ", or ".join(" + ".join(form) for form in FORMS)


def form_of(row: Any, where: str) -> tuple[str, ...]:
    """Return which of `FORMS` a row has.

    Args:
        where: the row's file and line, for the message.

    Raises:
        UserError: none, or more than one.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: the row is {_named(row)}, and must be an object with {_forms()}")
    there = {key for key in KEYS if row.get(key) is not None}
    found = [form for form in FORMS if there.issuperset(form)]
    if len(found) == 1:
        return found[0]
    if found:
        both = " as well as ".join(" + ".join(form) for form in found)
        raise UserError(f"{where}: it has {both}; leave one of them in the rows")
    for form in sorted(FORMS, key=lambda form: -len(there.intersection(form))):
        if row.keys() >= {*form}:  # complete but for what is null
            raise UserError(f"{where}: {next(key for key in form if key not in there)} is null; leave out such a row")
    raise UserError(f"{where}: it must have {_forms()}; there are {', '.join(map(str, row))[:200] or 'no keys'}")


def example(form: tuple[str, ...], row: dict[str, Any], where: str) -> Example:
    """Return a row as what its form describes.

    Raises:
        UserError: see `read_examples`.
    """
    if form == ("messages",):
        messages = _messages(row, "messages", where)
        _check_begin(messages, "messages", where)
        _check_end(messages, "messages", where)
        return Conversation(messages, 0, where)
    if form == ("text", "label"):
        label = row["label"]
        if type(label) not in (str, int) or label == "":
            raise UserError(f"{where}: label is {_named(label)}, and must be a text or a whole number")
        return Labelled(_text(row["text"], "text", where), label, where)
    prompt = _messages(row, "prompt", where, "user")
    _check_begin(prompt, "prompt", where)
    if prompt[-1].role == "assistant":
        raise UserError(f"{where}: prompt ends with the assistant's message; that belongs to {form[1]}")
    answers = [_answer(row, key, where) for key in form[1:]]
    if len(answers) == 1:
        return Conversation(prompt + answers[0], len(prompt), where)
    if answers[0] == answers[1]:
        raise UserError(f"{where}: chosen and rejected are the same; leave out such a pair, which prefers nothing")
    return Preference(prompt, answers[0], answers[1], where, _gold(row, where), _number(row, MARGIN, where))


def _gold(row: dict[str, Any], where: str) -> tuple[float, float] | None:
    """Return the true rewards of chosen and rejected; None if they are not there."""
    chosen, rejected = (_number(row, key, where) for key in GOLD)
    if (chosen is None) != (rejected is None):
        raise UserError(f"{where}: it has {GOLD[chosen is None]} alone; give both of {' and '.join(GOLD)}, or neither")
    return None if chosen is None or rejected is None else (chosen, rejected)


def _number(row: dict[str, Any], key: str, where: str) -> float | None:
    """Return the number under a key, which a CSV has as a text; None if there is none."""
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {key} is {value!r:.99}, and must be a finite number")
    return number


def _answer(row: dict[str, Any], key: str, where: str) -> Messages:
    messages = _messages(row, key, where, "assistant")
    if messages[0].role != "assistant":
        raise UserError(
            f"{where}: {key} begins with the {messages[0].role}'s message, and must begin with the assistant's; what "
            f"comes before that belongs to prompt"
        )
    _check_end(messages, key, where)
    return messages


def _messages(row: dict[str, Any], key: str, where: str, role: str | None = None) -> Messages:
    """Return the messages under a key; a text is a message of `role`, unless that is None."""
    value = row[key]
    if role is not None and isinstance(value, str):
        return (Message(role, _text(value, key, where)),)
    if not isinstance(value, list):
        wanted = "a list of messages" if role is None else "a text or a list of messages"
        raise UserError(f"{where}: {key} is {_named(value)}, and must be {wanted}")
    if not value:
        raise UserError(f"{where}: {key} is an empty list; leave out such a row")
    return tuple(_message(each, f"{key}[{i}]", where) for i, each in enumerate(value))


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise UserError(f"{where}: {name} is {_named(value)}, and must be an object with role and content")
    role = value["role"]
    if role not in ROLES:
        raise UserError(f"{where}: {name}.role is {role!r:.99}, an unknown role; {did_you_mean(str(role), ROLES)}")
    return Message(role, _text(value["content"], f"{name}.content", where))


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {_named(value)}, and must be a text")
    if not value:
        raise UserError(f"{where}: {name} is empty; leave out such a row")
    return replace_surrogates(value)


def _check_begin(messages: Messages, key: str, where: str) -> None:
    """Refuse messages that begin with the assistant, or have the system anywhere but at the beginning."""
    late = [i for i, message in enumerate(messages) if message.role == "system" and i]
    if late:
        raise UserError(f"{where}: {key}[{late[0]}].role is system, which can only be the first")
    told = [message.role for message in messages if message.role != "system"]
    if told[:1] == ["assistant"]:
        raise UserError(f"{where}: {key} begins with the assistant, who would answer nothing; begin with the user")
    if not told:
        raise UserError(f"{where}: {key} has a message of the system only; add the user's")


def _check_end(messages: Messages, key: str, where: str) -> None:
    """Refuse messages that do not end with an answer, from which nothing could be learnt."""
    if messages[-1].role == "assistant":
        return
    if all(message.role != "assistant" for message in messages):
        raise UserError(f"{where}: {key} has no message of the assistant, so that nothing can be learnt from it")
    raise UserError(f"{where}: {key} ends with the {messages[-1].role}'s message, which nobody answers; leave it out")


def _check_labels(examples: list[Example]) -> None:
    """Refuse labels of which some are texts and some are numbers."""
    kinds: dict[type, Labelled] = {}
    for each in examples:
        if isinstance(each, Labelled):
            kinds.setdefault(type(each.label), each)
    if len(kinds) > 1:
        one, other = kinds.values()
        raise UserError(
            f"{other.where}: label is {other.label!r:.99}, and {one.where} has {one.label!r:.99}; they must all be "
            f"texts, or all be whole numbers"
        )


def _named(value: Any) -> str:
    """Return in words what a value is."""
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a text", type(None): "null"}
    return "an empty text" if value == "" else names.get(type(value), "a number")
