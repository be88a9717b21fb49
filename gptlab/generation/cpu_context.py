"""The context of a GPT that our library computes, without torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptlab.generation.context import Context
from gptlab.generation.cpu_decoder import Cache, CPUDecoder
from gptlab.generation.cpu_library import load_library
from gptlab.models.arrays import ArrayGPT
from gptlab.models.packed import Array
from gptlab.models.positions import cache_columns, cache_room

if TYPE_CHECKING:
    from gptlab.models import Model


def arrays_for(model: Model | ArrayGPT) -> ArrayGPT | None:
    """Return the arrays of a model that our library can compute; None if it cannot, or there is no library."""
    if load_library() is None:
        return None
    if isinstance(model, ArrayGPT):
        return model
    from gptlab.models.gpt import GPT
    from gptlab.models.torch_arrays import arrays_of

    return arrays_of(model) if isinstance(model, GPT) and model.config.has_attention else None


class CPUContext(Context):
    """See `open_context`. A row has the same logits to the bit whatever stands beside it, however its text is cut.

    A pass costs what its tokens do, however they are spread over the rows: so it is cheap to `replace` one.
    """

    def __init__(
        self,
        model: ArrayGPT,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        ahead: int = 1,
        longest: int = 1,
        bf16_cache: bool = False,
    ) -> None:
        c = self.config = model.config
        super().__init__(c.block_size, prompts)
        self.places = [*range(len(self.rows))]  # the cache's row of each row
        self.unseen = [0] * len(self.rows)  # tokens of each row that lie before its window
        self.lengths = [0] * len(self.rows)  # tokens of each of the cache's rows that have been read
        self.columns = cache_columns(c, max(*map(len, self.rows), min(longest, c.block_size)), room, ahead)
        self.decoder = CPUDecoder(model, Cache(c, len(self.rows), self.columns, bf16_cache), len(self.rows))

    def replace(self, row: int, prompt: Sequence[int]) -> None:
        """Begin a row anew, with another prompt."""
        self.rows[row], self.unseen[row] = list(prompt[-self.config.block_size :]), 0
        self.lengths[self.places[row]] = 0

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in rows]
        self.places, self.unseen = ([each[i] for i in rows] for each in (self.places, self.unseen))

    def take_back(self, count: int) -> None:
        for row, place, unseen in zip(self.rows, self.places, self.unseen, strict=True):
            del row[len(row) - count :]  # a window that has moved begins further left then
            self.lengths[place] = 0 if unseen else min(self.lengths[place], len(row))
        self.unseen = [0] * len(self.rows)

    def logits(self, last: int = 1) -> Array:
        if not self.config.slides and max(self._seen()) > self.columns:
            if last > 1:
                return self._one_by_one(last)
            self._move_windows()
        self.passes += 1
        found: dict[int, Array] = {}
        while any(rest := self._unread()):
            share = self.decoder.most // sum(map(bool, rest))
            part = [
                self._next(row, min(share, cache_room(self.config, self.columns, self.lengths[place])), last)
                for row, place in zip(rest, self.places, strict=True)
            ]
            if not any(part):
                raise ValueError(f"the context was made for {self.columns} tokens, and more have been appended")
            ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
            found |= zip(ended, self._read(part, ended, last), strict=True)
            for place, row in zip(self.places, part, strict=True):
                self.lengths[place] += len(row)
        return np.stack([found[i] for i in range(len(self.rows))])

    @staticmethod
    def _next(row: list[int], room: int, last: int) -> list[int]:
        """Return the tokens of a row that the next pass has; the last ones, of which logits are wanted, in one."""
        return row[: max(len(row) - last, 1) if 0 < len(row) - room < last else room]

    def _unread(self) -> list[list[int]]:
        """Return the tokens of each row's window that the cache lacks."""
        places = zip(self.rows, self.unseen, self.places, strict=True)
        return [row[unseen + self.lengths[place] :] for row, unseen, place in places]

    def _seen(self) -> list[int]:
        """Return how many tokens each row's window has, or would have if all of them fitted in."""
        return [len(row) - unseen for row, unseen in zip(self.rows, self.unseen, strict=True)]

    def _move_windows(self) -> None:
        """Let the windows of rows that have outgrown the cache be their last block_size tokens, to be read anew."""
        for i, seen in enumerate(self._seen()):
            if seen > self.columns:
                self.unseen[i], self.lengths[self.places[i]] = max(0, len(self.rows[i]) - self.config.block_size), 0

    def _one_by_one(self, last: int) -> Array:
        """Return what `logits` does, where the windows of the last tokens begin at different places."""
        tokens = [row[len(row) - last + 1 :] for row in self.rows]
        self.take_back(last - 1)
        found = [self.logits()]
        for i in range(last - 1):
            self.append([some[i] for some in tokens])
            found.append(self.logits())
        return np.concatenate(found, axis=1)

    def _read(self, part: list[list[int]], ended: list[int], last: int) -> Array:
        """Compute some tokens of each row into the cache.

        Args:
            part: the next tokens of each row.
            ended: the rows that have no tokens after these.

        Returns:
            The logits after the last tokens of each of the rows in `ended`, (n, last, V).
        """
        placed = [*zip(self.places, part, strict=True)]
        sequence = [place for place, row in placed for _ in row]
        position = [self.lengths[place] + j for place, row in placed for j in range(len(row))]
        ends = list(itertools.accumulate(map(len, part)))
        wanted = [token for i in ended for token in range(ends[i] - last, ends[i])]
        logits = self.decoder([token for row in part for token in row], sequence, position, wanted)
        return logits.reshape(len(ended), last, logits.shape[1])
