"""Chat templates of models from elsewhere: a text in Jinja that writes messages as the model has learnt them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.conversations import Message
from gptlab.data.tokenizers import Tokenizer
from gptlab.data.tokenizers.base import replace_surrogates
from gptlab.system.errors import UserError

GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MARKS = ("gptlab_answer_begins", "gptlab_answer_ends")  # variables of a template
PRIVATE = range(0xF0000, 0xFFFFE)  # characters that stand for something in a text that does not have them


@dataclass(frozen=True)
class ChatTemplate:
    """A `chat_template`, rendered in Jinja's sandbox; the ids are those of `transformers`' `apply_chat_template`.

    Unlike there, a message that spells a special token stays ordinary text, and `strftime_now` tells a fixed date, so
    that a conversation has the same ids on every day.

    Args:
        tokenizer: the model's.
        source: the template.
        variables: what the template knows beside the messages, such as bos_token.
        ends: the ids that end a turn.
        date: what the template takes for today, YYYY-MM-DD.
        where: the file that it comes from, for messages.
    """

    tokenizer: Tokenizer
    source: str
    variables: dict[str, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    date: str = "2024-07-26"
    where: str = field(default="", compare=False)

    @property
    def words(self) -> str:
        """What it is, for messages."""
        return "the chat template" + (f" of {self.where}" if self.where else "")

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict from which `from_dict` makes the same template, given the tokenizer."""
        return {
            "source": self.source,
            "variables": dict(self.variables),
            "ends": list(self.ends),
            "date": self.date,
        }

    @classmethod
    def from_dict(cls, tokenizer: Tokenizer, about: Any, where: str = "") -> ChatTemplate:
        """Return the template that `to_dict` described.

        Raises:
            UserError: the description is damaged.
        """
        if not isinstance(about, dict) or about.keys() != {"source", "variables", "ends", "date"}:
            raise UserError("what it says of its chat template is damaged")
        source, variables, ends, date = (about[key] for key in ("source", "variables", "ends", "date"))
        named = isinstance(variables, dict) and all(
            isinstance(text, str) for pair in variables.items() for text in pair
        )
        known = isinstance(ends, list) and all(type(end) is int and 0 <= end < tokenizer.vocab_size for end in ends)
        if not (isinstance(source, str) and named and known and isinstance(date, str) and _is_day(date)):
            raise UserError("what it says of its chat template is damaged")
        return cls(tokenizer, source, variables, tuple(ends), date, where)

    def as_template(self) -> str:
        """Return the template in Jinja, as `transformers` takes it."""
        return self.source

    def encode(self, messages: Sequence[Message], given: int = 0) -> Encoded:
        """Return the ids of messages. What the assistant says counts, and the token that ends it.

        What that is the template tells by {% generation %}, or else what it writes for the messages up to an answer and
        up to its end. White space after the token that ends an answer does not count.

        Args:
            given: so many messages at the beginning are a prompt and do not count.

        Raises:
            UserError: the template cannot be rendered, or it is not told what the assistant says, or the end of that.
        """
        hidden = _Hidden(messages, self)
        stretches = self._marked if GENERATION.search(self.source) else self._between_prefixes
        text, answers = stretches(hidden, given)
        ids = self._ids(text, hidden)
        counted = np.zeros(len(ids), dtype=bool)
        ends = self._token_ends(text, ids, hidden)
        for begin, end in answers:
            first = self._position(text[:begin], ids, hidden, ends)[0]
            last = self._position(text[:end], ids, hidden, ends)[1]
            counted[first : self._end(ids, first, last)] = True
        return Encoded(ids, counted & (np.arange(len(ids)) > 0))

    def ids(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the ids of `encode` alone, in less time."""
        hidden = _Hidden(messages, self)
        return self._ids(self._render(hidden.messages), hidden)

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the ids after which the assistant's answer to `messages` begins, (n,) int64."""
        hidden = _Hidden(messages, self)
        return self._ids(self._render(hidden.messages, answer=True), hidden)

    def _marked(self, hidden: _Hidden, given: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and where the answers are in it, as {% generation %} tells."""
        begin, end = hidden.marks
        parts = re.split(f"([{begin}{end}])", self._render(hidden.messages, marks=hidden.marks))
        lengths = np.cumsum([0 if part in hidden.marks else len(part) for part in parts]).tolist()
        places = {mark: [lengths[i] for i, part in enumerate(parts) if part == mark] for mark in hidden.marks}
        answers = [*zip(places[begin], places[end], strict=True)]
        told = [i for i, message in enumerate(hidden.messages) if message.role == "assistant"]
        if given and len(answers) != len(told):
            raise UserError(
                f"{self.words} marks {len(answers)} answers by {{% generation %}} where there are {len(told)}, so "
                f"that it is not known which of them are given; mark each message of the assistant"
            )
        text = "".join(part for part in parts if part not in hidden.marks)
        return text, answers[sum(i < given for i in told) if given else 0 :]

    def _between_prefixes(self, hidden: _Hidden, given: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and where the answers are in it, by rendering the messages before them."""
        messages, text = hidden.messages, self._render(hidden.messages)
        answers = []
        for i, message in enumerate(messages):
            if message.role == "assistant" and i >= given:
                before, through = self._render(messages[:i], answer=True), self._render(messages[: i + 1])
                if not (text.startswith(through) and through.startswith(before)):
                    raise UserError(
                        f"{self.words} writes a message otherwise when others follow it, so that what the assistant "
                        "says cannot be found; put {% generation %} and {% endgeneration %} around that in "
                        "the template"
                    )
                answers.append((len(before), len(through)))
        return text, answers

    def _token_ends(self, text: str, ids: np.ndarray, hidden: _Hidden) -> np.ndarray | None:
        """Return the byte of a text where each of its ids ends, (n,); None if their bytes are not those of the text."""
        tokens = [self.tokenizer.tokens[i] for i in ids]
        if b"".join(tokens) != hidden.show(text).encode():
            return None
        return np.cumsum([len(token) for token in tokens])

    def _position(self, prefix: str, ids: np.ndarray, hidden: _Hidden, ends: np.ndarray | None) -> tuple[int, int]:
        """Return how many of a text's ids lie wholly in a prefix of it, and how many at least in part."""
        if ends is not None:
            size = len(hidden.show(prefix).encode())
            whole = int(np.searchsorted(ends, size, side="right"))
            return whole, whole + bool(size > (ends[whole - 1] if whole else 0))
        own = self._ids(prefix, hidden)
        same = len([*takewhile(bool, (a == b for a, b in zip(own, ids, strict=False)))])
        return same, same + (same < len(own))

    def _end(self, ids: np.ndarray, first: int, last: int) -> int:
        """Return the position after the token that ends an answer, whose ids are those from `first` to `last`.

        It is the last special token among them, or the one after them.
        """
        enders = {*self.ends, *self.tokenizer.special_tokens.values()}
        found = [i for i in range(first, min(last + 1, len(ids))) if ids[i] in enders]
        within = [i for i in found if i < last] or found
        if not within:
            raise UserError(
                f"{self.words} writes no special token after an answer, so that a model would never learn to stop; "
                "add one in the template, such as {{ eos_token }}"
            )
        return within[-1] + 1

    def with_own_end(self) -> ChatTemplate:
        """Return the template with the token that it writes after an answer among `ends`.

        Raises:
            UserError: see `encode`.
        """
        ids, counted = self.encode([Message("user", "a"), Message("assistant", "b")])
        return replace(self, ends=tuple(dict.fromkeys([*ids[counted][-1:].tolist(), *self.ends])))

    def _ids(self, text: str, hidden: _Hidden) -> np.ndarray:
        """Return the ids of a rendered text, in which special tokens are such and what is hidden is text."""
        whole = self.tokenizer.encode_special(text)
        if not hidden.occurs_in(text):
            return whole
        names = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)

        def joined(shown: bool) -> np.ndarray:
            ids = [
                np.array([self.tokenizer.special_tokens[part]])
                if i % 2
                else self.tokenizer.encode(hidden.show(part) if shown else part)
                for i, part in enumerate(parts)
                if part
            ]
            return np.concatenate(ids).astype(np.int64)

        if not np.array_equal(joined(shown=False), whole):
            raise UserError(
                f"a message spells {hidden.names}, a special token of this tokenizer, which cannot tell the two apart "
                f"in a chat template; take it out of the message"
            )
        return joined(shown=True)

    def _render(self, messages: Sequence[Message], answer: bool = False, marks: Sequence[str] = ("", "")) -> str:
        """Return messages as the template writes them.

        Args:
            answer: whether what comes before the assistant's answer is written after them.
            marks: what is written where {% generation %} begins and ends.
        """
        given: dict[str, Any] = {"messages": [message._asdict() for message in messages], "tools": None}
        given |= {"documents": None, "add_generation_prompt": answer, **self.variables}
        try:
            return replace_surrogates(str(self._compiled.render(given | dict(zip(MARKS, marks, strict=True)))))
        except Exception as error:  # whatever the template does
            raise UserError(
                f"{self.words} refuses a conversation, or is broken ({type(error).__name__}: {str(error)[:200]})"
            ) from error

    @cached_property
    def _compiled(self) -> Any:
        """The template, compiled. Nothing that it is given can be changed by it."""
        from jinja2 import TemplateSyntaxError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = datetime.date.fromisoformat(self.date).strftime
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise UserError(f"{self.words} is no Jinja: line {error.lineno}: {error.message}") from error


class _Hidden:
    """Messages in which the names of special tokens are hidden behind characters that occur nowhere in them."""

    def __init__(self, messages: Sequence[Message], template: ChatTemplate) -> None:
        text = "".join(message.content for message in messages)
        free = self._free(text + template.source)
        self.marks = next(free), next(free)
        """Two more such characters."""
        spelled = sorted((name for name in template.tokenizer.special_names if name in text), key=len, reverse=True)
        self._names = {name: next(free) for name in spelled}
        self.messages = [message._replace(content=self._hide(message.content)) for message in messages]

    @staticmethod
    def _free(text: str) -> Iterator[str]:
        return (chr(point) for point in PRIVATE if chr(point) not in text)

    @property
    def names(self) -> str:
        """What is hidden, for a message."""
        return ", ".join(self._names)

    def _hide(self, text: str) -> str:
        for name, character in self._names.items():
            text = text.replace(name, character)
        return text

    def occurs_in(self, text: str) -> bool:
        return any(character in text for character in self._names.values())

    def show(self, text: str) -> str:
        """Return a text in which the names are what they were."""
        for name, character in self._names.items():
            text = text.replace(character, name)
        return text


def _is_day(text: str) -> bool:
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _generation_tag() -> Any:
    """Return the extension of Jinja that writes `MARKS` where {% generation %} begins and ends."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # as Jinja has it

        def parse(self, parser: Any) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.Name(mark, "load")], lineno=line) for mark in MARKS)
            return [begin, nodes.Scope(body, lineno=line), end]

    return Generation


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON, without the escapes for HTML of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
