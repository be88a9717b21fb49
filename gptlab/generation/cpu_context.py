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

PART = 64  # tokens of a pass beside which others wait


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

    A pass costs what its tokens do, however they are spread over the rows: so rows may `join` at any time.
    """

    def __init__(
        self,
        model: ArrayGPT,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        ahead: int = 1,
        longest: int = 1,
        rows: int | None = None,
        bf16_cache: bool = False,
    ) -> None:
        c = self.config = model.config
        super().__init__(c.block_size, prompts)
        self.places = [*range(len(self.rows))]  # the cache's row of each row
        self.unseen = [0] * len(self.rows)  # tokens of each row that lie before its window
        places = rows or len(self.rows)
        self.lengths = [0] * places  # tokens of each of the cache's rows that have been read
        self.columns = cache_columns(c, max(*map(len, self.rows), min(longest, c.block_size)), room, ahead)
        self.decoder = CPUDecoder(model, Cache(c, places, self.columns, bf16_cache), places)

    def join(self, prompt: Sequence[int]) -> None:
        """Add a row at the end, in a place of the cache that is free."""
        place = min({*range(len(self.lengths))} - {*self.places})
        self.rows.append(list(prompt[-self.config.block_size :]))
        self.places.append(place)
        self.unseen.append(0)
        self.lengths[place] = 0

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
            found |= self._pass(rest, last, self.decoder.most)
        return np.stack([found[i] for i in range(len(self.rows))])

    def part(self) -> dict[int, Array]:
        """Read up to `PART` tokens in one pass, spread over the rows, instead of all that there are.

        Returns:
            The logits after the last token, (1, V), of each row that has been read to its end.
        """
        if not self.config.slides and max(self._seen()) > self.columns:
            self._move_windows()
        self.passes += 1
        return self._pass(self._unread(), 1, max(PART, len(self.rows)))

    def _pass(self, rest: list[list[int]], last: int, most: int) -> dict[int, Array]:
        """Compute one pass of up to `most` of the tokens that have not been read, `rest`.

        Returns:
            The logits of the last tokens, (last, V), of each row that has been read to its end.
        """
        part = [
            self._next(row, min(share, cache_room(self.config, self.columns, self.lengths[place])), last)
            for row, share, place in zip(rest, shares([*map(len, rest)], most), self.places, strict=True)
        ]
        if not any(part):
            raise ValueError(f"the context was made for {self.columns} tokens, and more have been appended")
        ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
        found = dict(zip(ended, self._read(part, ended, last), strict=True))
        for place, row in zip(self.places, part, strict=True):
            self.lengths[place] += len(row)
        return found

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


def shares(wanted: Sequence[int], most: int) -> list[int]:
    """Return how much of `most` each gets: what it wants, or where that is too much in all, an even share of the rest.

    The others may get all that somebody wants less.
    """
    found, left = [0] * len(wanted), most
    for rank, i in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        found[i] = min(wanted[i], left // (len(wanted) - rank))
        left -= found[i]
    return found
