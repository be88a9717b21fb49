"""Let a model answer the prompts of held-out conversations, and compare its answers to the right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gptlab.alignment.scoring import reply_text
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.generation.replies import draw_replies
from gptlab.models import Model, Network
from gptlab.training.sampled import SampledAnswers


class Answered(NamedTuple):
    """A prompt, and what the model answers."""

    prompt: str
    """See `Conversation.asked`."""
    answer: str
    wanted: str
    ended: bool
    """Whether the answer ends with an end token."""
    right: bool
    """Whether it is what was wanted, and ends there."""
    tokens: int
    """Its tokens, with the end."""
    reward: float | None
    """What it earns; None: answers are not rewarded."""
    kind: str
    """See `Conversation.kind`."""


class Answers:
    """Answers the prompts of conversations greedily.

    An answer is right if the format would write what is wanted so; a chat template may trim it, or put a space before.

    Args:
        chat: how the model is asked.
        conversations: those of each part that are answered; the last message of each is the right answer.
        max_tokens: the most tokens of an answer, its end included.
        sampled: what samples several answers to each prompt beside; None: nothing.
        most: the number of prompts of a part to which answers are sampled.
        expected: whether the last message is what should be answered; otherwise it is one answer of many, and there is
            no accuracy.
    """

    def __init__(
        self,
        chat: Format,
        conversations: Mapping[str, Sequence[Conversation]],
        max_tokens: int,
        sampled: SampledAnswers | None = None,
        most: int = 0,
        expected: bool = True,
    ) -> None:
        self.chat, self.conversations, self.max_tokens = chat, conversations, max_tokens
        self.sampled, self.most, self.expected = sampled, most, expected
        self.measures: tuple[str, ...] = ("accuracy",) if expected else ()
        kinds = {each.kind for some in conversations.values() for each in some} - {""}
        self.measures += tuple(f"accuracy_{kind}" for kind in sorted(kinds) if expected)
        self.measures += ("stop_rate", "answer_tokens", *(sampled.measures if sampled else ()))
        self.last: list[Answered] = []
        """What was answered when `measure` was last called."""

    @cached_property
    def _rights(self) -> dict[str, list[str | None]]:
        """For each part and conversation the right answer as the format writes it; None: no answer can be right."""
        return {part: [self._right(each) for each in asked] for part, asked in self.conversations.items()}

    def _right(self, conversation: Conversation) -> str | None:
        ids, counted = self.chat.encode(conversation.messages, conversation.given)
        begin = np.flatnonzero(~counted[: np.flatnonzero(counted)[-1]])[-1] + 1  # of the last stretch that counts
        answer = ids[begin:][counted[begin:]].tolist()
        text = self.chat.tokenizer.decode(answer[:-1])
        said = text.strip() == conversation.messages[-1].content.strip()
        return text if said and len(answer) <= self.max_tokens else None

    def impossible(self, part: str) -> int:
        """Return how many answers of a part no model can give.

        They have characters or words that the tokenizer lacks, a chat template changes them, or they are too long.
        """
        return self._rights[part].count(None)

    def measure(self, model: Model, part: str, policy: Network | None = None) -> dict[str, float]:
        """Return the share of right answers, the share that end, and their mean length in tokens; and what is measured
        of sampled answers.

        Args:
            model: a model in evaluation mode, its adapters merged.
            part: val or test.
            policy: the model that is trained; None: the same.
        """
        asked = self.conversations.get(part, ())
        if not asked:
            return {}
        prompts = [self.chat.prompt(each.messages[:-1]).tolist() for each in asked]
        replies = draw_replies(model, prompts, self.max_tokens, self.chat.ends)
        rewards = self.sampled.scorer.gold(asked, replies).tolist() if self.sampled else [None] * len(asked)
        self.last = []
        for each, reply, wanted, reward in zip(asked, replies, self._rights[part], rewards, strict=True):
            answer = reply_text(reply, self.chat.tokenizer)
            said = each.asked, answer, each.messages[-1].content
            right = reply.ended and answer == wanted
            self.last.append(Answered(*said, reply.ended, right, len(reply.ids), reward, each.kind))
        count = len(asked)
        by_kind: dict[str, list[bool]] = {}
        for answered in self.last:
            by_kind.setdefault(answered.kind, []).append(answered.right)
        found = {f"{part}/accuracy_{kind}": sum(some) / len(some) for kind, some in sorted(by_kind.items()) if kind}
        if self.expected:
            found[f"{part}/accuracy"] = sum(each.right for each in self.last) / count
        if self.sampled:
            rights = self._rights[part][: self.most]
            found |= self.sampled.measure(model, policy or model, asked[: self.most], rights, part)
        return {
            **found,
            f"{part}/stop_rate": sum(each.ended for each in self.last) / count,
            f"{part}/answer_tokens": sum(len(reply.ids) for reply in replies) / count,
        }
