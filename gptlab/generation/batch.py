"""Many prompts that are continued side by side: rows leave as their texts end, and others take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptlab.generation.context import Logits, open_context
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
    """

    def __init__(
        self,
        model: Model | ArrayGPT,
        prompts: Sequence[Sequence[int]],
        room: int,
        width: int,
        backend: str | None = None,
        bf16_cache: bool = False,
    ) -> None:
        self.model, self.prompts, self.room, self.width, self.backend = model, prompts, room, width, backend
        self.bf16_cache = bf16_cache
        self.waiting = deque(range(len(prompts)))
        self.passes = 0  # forward passes so far
        self._begin()

    def _begin(self) -> None:
        self.all = [self.waiting.popleft() for _ in range(min(self.width, len(self.waiting)))]  # of the rows
        self.ended: set[int] = set()
        if self.all:
            longest = max((len(self.prompts[i]) for i in self.waiting), default=1)
            first = [self.prompts[i] for i in self.all]
            options: dict[str, Any] = {"backend": self.backend, "bf16_cache": self.bf16_cache}
            self.context = open_context(self.model, first, self.room, longest=longest, **options)

    @property
    def numbers(self) -> list[int]:
        """Which prompts are being continued; none once all have ended."""
        return [number for number in self.all if number not in self.ended]

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each of `numbers`."""
        return [row for number, row in zip(self.all, self.context.rows, strict=True) if number not in self.ended]

    def logits(self) -> Logits:
        """Return the logits for the next token of each of `numbers`, (b, V)."""
        self.passes += 1
        logits = self.context.logits()[:, -1]
        return logits[[i for i, number in enumerate(self.all) if number not in self.ended]] if self.ended else logits

    def append(self, tokens: Sequence[int], ended: Sequence[bool]) -> None:
        """Append a token to each of `numbers`, and let those whose texts have ended go.

        Args:
            tokens, ended: one for each.
        """
        given = dict(zip(self.numbers, tokens, strict=True))
        self.context.append([given.get(number, 0) for number in self.all])
        self.ended |= {number for number, end in zip(given, ended, strict=True) if end}
        if len(self.ended) == len(self.all):
            self._begin()
        elif self.ended and isinstance(self.context, CPUContext):
            self._join(self.context)
        elif 2 * len(self.ended) >= len(self.all) and self.backend is None:
            self._leave()

    def _join(self, context: CPUContext) -> None:
        for row, number in enumerate(self.all):
            if number in self.ended and self.waiting:
                self.all[row] = self.waiting.popleft()
                context.replace(row, self.prompts[self.all[row]])
                self.ended.remove(number)
        if self.ended:
            self._leave()

    def _leave(self) -> None:
        kept = [row for row, number in enumerate(self.all) if number not in self.ended]
        self.context.keep(kept)
        self.all, self.ended = [self.all[row] for row in kept], set()
