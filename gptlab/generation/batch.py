"""Many prompts that are continued side by side: rows leave as their texts end, and others take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.generation.context import Context, Logits, open_context
from gptlab.generation.cpu_context import CPUContext

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT


class Batch:
    """Continues prompts, up to `width` at a time.

    Where a pass costs what its tokens do (see `CPUContext`), the next prompt begins as soon as a text has ended.
    Otherwise the next `width` begin when all have ended; of those that have, half or more are left out of the passes.

    Args:
        model: a model in evaluation mode.
        prompts: the tokens of each prompt, at least one.
        room: the most tokens of a continuation.
        width: the most rows of a pass.
        backend: the torch.compile backend, see `open_context`; rows then stay until all have ended.
        bf16_cache: see `open_context`.
        longest: the length of the longest prompt that `add` will bring: then long prompts are read in parts where
            `CPUContext` computes, and the other rows go on meanwhile. None: none is added.
    """

    def __init__(
        self,
        model: Model | ArrayGPT,
        prompts: Sequence[Sequence[int]],
        room: int,
        width: int,
        backend: str | None = None,
        bf16_cache: bool = False,
        longest: int | None = None,
    ) -> None:
        self.model, self.room, self.backend, self.bf16_cache = model, room, backend, bf16_cache
        self.in_parts = longest is not None
        self.longest = longest or max(map(len, prompts), default=1)
        self.width = width if self.in_parts else min(width, max(len(prompts), 1))
        self.passes = 0  # forward passes so far
        self.context: Context | None = None
        self.all: list[int] = []  # the prompt of each row of the context
        self.ended: set[int] = set()
        self.unread: set[int] = set()  # the prompts of which a part has not been read
        self.waiting: deque[tuple[int, Sequence[int]]] = deque()
        self.count = 0
        self.add(prompts)

    def add(self, prompts: Sequence[Sequence[int]]) -> range:
        """Let prompts wait for their turn, and return their numbers."""
        numbers = range(self.count, self.count + len(prompts))
        self.count += len(prompts)
        self.waiting.extend(zip(numbers, prompts, strict=True))
        self._begin()
        return numbers

    def _begin(self) -> None:
        """Begin with those that wait, as far as there is room."""
        count = min(self.free, len(self.waiting))
        if not count:
            return
        numbers, prompts = zip(*(self.waiting.popleft() for _ in range(count)), strict=True)
        self.all += numbers
        if isinstance(self.context, CPUContext):
            for prompt in prompts:
                self.context.join(prompt)
            return
        options: dict[str, Any] = {"backend": self.backend, "bf16_cache": self.bf16_cache, "rows": self.width}
        self.context = open_context(self.model, prompts, self.room, longest=self.longest, **options)

    @property
    def free(self) -> int:
        """How many more prompts could begin now."""
        return self.width - len(self.all) if not self.all or isinstance(self.context, CPUContext) else 0

    @property
    def numbers(self) -> list[int]:
        """Which prompts are being continued; none once all have ended."""
        return [number for number in self.all if number not in self.ended and number not in self.unread]

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each of `numbers`."""
        wanted = {*self.numbers}
        return [row for number, row in zip(self.all, self._context.rows, strict=True) if number in wanted]

    @property
    def _context(self) -> Context:
        assert self.context is not None
        return self.context

    def logits(self) -> Logits:
        """Return the logits for the next token of each of `numbers`, (b, V).

        Where long prompts are read in parts, those of which a part is left are no `numbers` after this.
        """
        self.passes += 1
        if self.in_parts and isinstance(self.context, CPUContext):
            found = self.context.part()
            self.unread = {number for row, number in enumerate(self.all) if row not in found}
            none = np.empty((0, self.context.config.vocab_size), np.float32)
            return np.concatenate([none, *(found[row] for row in sorted(found))])
        logits = self._context.logits()[:, -1]
        return logits[[i for i, number in enumerate(self.all) if number not in self.ended]] if self.ended else logits

    def append(self, tokens: Sequence[int], ended: Sequence[bool]) -> None:
        """Append a token to each of `numbers`, and let those whose texts have ended go.

        Args:
            tokens, ended: one for each.
        """
        given = dict(zip(self.numbers, tokens, strict=True))
        self._context.append([None if number in self.unread else given.get(number, 0) for number in self.all])
        self.leave({number for number, end in zip(given, ended, strict=True) if end})

    def leave(self, numbers: Collection[int]) -> None:
        """Let prompts go that are in the batch, and others take their place."""
        self.ended.update(numbers)
        ours, all_ended = isinstance(self.context, CPUContext), len(self.ended) == len(self.all)
        many = 2 * len(self.ended) >= len(self.all) and self.backend is None
        if self.ended and (ours or all_ended or many):
            kept = [row for row, number in enumerate(self.all) if number not in self.ended]
            if kept or ours:
                self._context.keep(kept)
            self.unread -= self.ended
            self.all, self.ended = [self.all[row] for row in kept], set()
        self._begin()
