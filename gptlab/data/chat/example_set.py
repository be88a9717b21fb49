"""What tasks learn from: conversations, labelled texts or preferences, in the parts of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptlab.data.chat.conversations import Conversation, Example, Labelled, Preference
from gptlab.system.errors import UserError

CONVERSATIONS, LABELS, PREFERENCES = "conversations", "labels", "preferences"


@dataclass(frozen=True)
class Form:
    """What a task learns from."""

    noun: str
    tasks: str
    """Which learn from it."""
    verb: str
    rows: str
    """The rows of data=chat that have it."""
    kind: type
    """What such a row is, when read."""
    names: tuple[str, ...]
    """The generated data sets that have it."""

    @property
    def either(self) -> str:
        """Its tasks to choose from."""
        return self.tasks.replace(" and ", " or ")


FORMS = {
    CONVERSATIONS: Form(
        "conversations",
        "task=sft, ppo and grpo",
        "learn",
        "messages, or prompt + completion",
        Conversation,
        ("arithmetic", "instructions", "continuations"),
    ),
    LABELS: Form("labelled texts", "task=classify", "learns", "text + label", Labelled, ("labels",)),
    PREFERENCES: Form(
        "preferences", "task=reward and dpo", "learn", "prompt + chosen + rejected", Preference, ("preferences",)
    ),
}


@dataclass(frozen=True)
class ExampleSet:
    """Conversations, labelled texts or preferences in the parts of a data set."""

    name: str
    form: str
    """One of `FORMS`."""
    parts: dict[str, list[Any]]
    """train, val and perhaps test: `Conversation`s, `Labelled` texts or `Preference`s."""
    known: bool
    """Whether each prompt has one right answer, or each text one right label."""

    def texts(self, part: str) -> Iterator[str]:
        """Yield what is said in a part; a prompt before two answers once."""
        for each in self.parts[part]:
            if isinstance(each, Labelled):
                yield each.text
            else:
                said = each.messages if isinstance(each, Conversation) else each.prompt + each.chosen + each.rejected
                yield from (message.content for message in said)

    @property
    def classes(self) -> tuple[str | int, ...]:
        """The labels of labelled texts, sorted: class i is the i-th. The training part has all of them."""
        return tuple(sorted({each.label for each in self.parts["train"]}))

    def sha256(self) -> str:
        """Return a hash of all that is said, by whom, of what is only given, preferred, by how much, or its label."""
        said = {part: [content(each) for each in rows] for part, rows in self.parts.items()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def in_words(self) -> str:
        """Return how many examples each part has."""
        names = {"train": "training", "val": "validation", "test": "test"}
        counts = [f"{len(rows):,} {names[part]}" for part, rows in self.parts.items()]
        return f"{', '.join(counts[:-1])} and {counts[-1]} {FORMS[self.form].noun} of {self.name}"


def content(each: Example) -> tuple[Any, ...]:
    """Return what makes an example, what is first said first: not where it comes from."""
    if isinstance(each, Conversation):
        return each.messages, each.given
    if isinstance(each, Labelled):
        return each.text, each.label
    said = each.prompt, each.chosen, each.rejected
    return said if each.difference is None else (*said, each.difference)


def check_form(name: str, form: str) -> None:
    """Check that a data set can have a form, one of `FORMS`; of data=chat only its rows tell.

    Raises:
        UserError: it has another, or is a text.
    """
    wanted = FORMS[form]
    if name in ("chat", *wanted.names):
        return
    generated = [f"data={name}" for name in wanted.names]
    ways = ", ".join(["data=chat data.path=my.jsonl", *generated[:-1]]) + f" or {generated[-1]}"
    has = next((f"it has {other.noun}" for other in FORMS.values() if name in other.names), "a text")
    raise UserError(f"data={name}: {has}, and {wanted.tasks} {wanted.verb} from {wanted.noun}; give {ways}")
