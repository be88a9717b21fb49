"""Rows of tokens, and the model's logits for their next tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gptlab.generation.cpu_decoder import CPUDecoder
from gptlab.generation.cpu_library import load_library
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import attention_span
from gptlab.models.quantised import is_quantised


class Context:
    """Rows of tokens, and the model's logits for their next tokens.

    A token sees at most the last block_size tokens. Once a row is longer, a model with learned or sinusoidal positions
    reads the whole window again for every token; with other positions the window slides (see `KVCache`).

    Args:
        model: a model in evaluation mode.
        prompts: the tokens of each row, at least one; only the last block_size are used.
        room: the number of tokens that will be appended to a row.
        ahead: the largest number of tokens appended before `logits` is called; `take_back` can remove them.
        longest: the length of the longest prompt that `replace` will bring.
        bf16_cache: keep keys and values in bf16, half the memory; does something where our C computes quantised models.
        cache: keep keys and values; without it every token is computed again each time, with the same result.
        backend: the torch.compile backend for single tokens, e.g. "inductor" (on a GPU with CUDA graphs).
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        ahead: int = 1,
        longest: int = 1,
        bf16_cache: bool = False,
        cache: bool = True,
        backend: str | None = None,
    ) -> None:
        c = model.config
        self.model = model
        self.rows = [list(prompt[-c.block_size :]) for prompt in prompts]
        self.places = [*range(len(self.rows))]  # the cache's row of each row
        self.unseen = [0] * len(self.rows)  # tokens of each row that lie before its window
        self.device = torch.device("cpu") if is_quantised(model) else next(model.parameters()).device
        self.cache: KVCache | None = None
        self.cpu_decoder: CPUDecoder | None = None
        self.backend = backend
        self.passes = 0  # forward passes so far
        self.compiled: Callable[[Tensor], Tensor] | None = None
        if cache and isinstance(model, GPT) and isinstance(c, GPTConfig) and c.has_attention:
            longest = max(*map(len, self.rows), min(longest, c.block_size))
            whole = longest + room
            columns = max(longest, min(whole, attention_span(c))) + ahead if c.slides else min(whole, c.block_size)
            dtype = torch.float32 if is_quantised(model) else model.wte.weight.dtype
            if self.device.type == "cpu" and dtype == torch.bfloat16:
                dtype = torch.float32  # torch's attention over bf16 is several times as slow there
            kept = torch.bfloat16 if bf16_cache and is_quantised(model) and load_library() else dtype
            self.cache = KVCache(c, len(self.rows), columns, dtype=kept, conv_dtype=dtype, device=self.device)
            self._decode_here()

    def _decode_here(self) -> None:
        assert self.cache is not None
        if self.backend is None and isinstance(self.model, GPT) and CPUDecoder.supports(self.model, self.cache):
            self.cpu_decoder = CPUDecoder(self.model, self.cache)

    @property
    def joinable(self) -> bool:
        """Whether a pass costs what its tokens do, however they are spread over the rows: then `replace` is cheap."""
        return self.cpu_decoder is not None and is_quantised(self.model)

    def replace(self, row: int, prompt: Sequence[int]) -> None:
        """Begin a row anew, with another prompt."""
        self.rows[row], self.unseen[row] = list(prompt[-self.model.config.block_size :]), 0
        if self.cache is not None:
            self.cache.clear([self.places[row]])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows alone."""
        before = {*self.places}
        self.rows = [self.rows[i] for i in rows]
        self.places, self.unseen = ([each[i] for i in rows] for each in (self.places, self.unseen))
        if self.cache is not None and self.joinable:
            self.cache.clear(before - {*self.places})
        elif self.cache is not None:
            self.cache.keep(rows)
            self.places = [*range(len(rows))]
            self._decode_here()

    def append(self, tokens: Tensor | Sequence[int]) -> None:
        """Append a token to each row.

        Args:
            tokens: one for each row, (B,).
        """
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))

    def take_back(self, count: int) -> None:
        """Remove the last `count` tokens of each row."""
        for row in self.rows:
            del row[len(row) - count :]
        if self.cache is not None:
            lengths = [*self.cache.lengths]
            for row, place, unseen in zip(self.rows, self.places, self.unseen, strict=True):
                lengths[place] = 0 if unseen else len(row)  # a window that has moved begins further left then
            self.cache.forget(lengths)
            self.unseen = [0] * len(self.rows)

    @torch.no_grad()
    def logits(self, last: int = 1) -> Tensor:
        """Return the logits after each of the last tokens of every row, (B, last, V).

        Args:
            last: the number of tokens; with a cache, at most as many as were appended since the last call.

        Raises:
            ValueError: more tokens were appended than the context has room for.
        """
        self.passes += 1
        c = self.model.config
        slides = isinstance(c, GPTConfig) and c.slides
        if self.cache is not None and not slides and max(self._seen()) > self.cache.columns:
            if self.joinable and last == 1:
                self._read_again()
            else:
                self.cache = None
        if self.cache is None:
            ends = []
            for back in reversed(range(last)):
                rows = [row[: len(row) - back] for row in self.rows]
                rows = rows if slides else [row[-c.block_size :] for row in rows]
                x = self.model.features(self._padded(rows))  # (B, T, C)
                ends.append(torch.stack([x[i, len(row) - 1 : len(row)] for i, row in enumerate(rows)]))
            return self.model.head(torch.cat(ends, dim=1))
        found: dict[int, Tensor] = {}
        while any(rest := self._unread()):
            rooms = self._rooms(rest)
            part = [row[:room] for row, room in zip(rest, rooms, strict=True)]
            if not any(part):
                raise ValueError(f"the context was made for {self.cache.columns} tokens, and more have been appended")
            ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
            found |= zip(ended, self._read(part, ended, last), strict=True)
            counts = [0] * len(self.cache.lengths)
            for place, row in zip(self.places, part, strict=True):
                counts[place] = len(row)
            self.cache.advance(counts)
        return torch.stack([found[i] for i in range(len(self.rows))])

    def _seen(self) -> list[int]:
        """Return how many tokens each row's window has, or would have if all of them fitted in."""
        return [len(row) - unseen for row, unseen in zip(self.rows, self.unseen, strict=True)]

    def _unread(self) -> list[list[int]]:
        """Return the tokens of each row that the cache lacks."""
        assert self.cache is not None
        lengths = [self.cache.lengths[place] for place in self.places]
        return [row[sum(before) :] for row, *before in zip(self.rows, self.unseen, lengths, strict=True)]

    def _rooms(self, rest: list[list[int]]) -> list[int]:
        """Return how many tokens of each row the next pass can have."""
        assert self.cache is not None
        if self.cpu_decoder is None or not self.joinable:
            return [self.cache.room()] * len(rest)
        share = self.cpu_decoder.most // sum(map(bool, rest))
        return [min(share, self.cache.room(place)) for place in self.places]

    def _read_again(self) -> None:
        """Move the windows of rows that have outgrown the cache: their last block_size tokens are to be read anew."""
        assert self.cache is not None
        over = [i for i, seen in enumerate(self._seen()) if seen > self.cache.columns]
        for i in over:
            self.unseen[i] = len(self.rows[i]) - self.model.config.block_size
        self.cache.clear([self.places[i] for i in over])

    def _read(self, part: list[list[int]], ended: list[int], last: int) -> Iterable[Tensor]:
        """Compute some tokens of each row into the cache.

        Args:
            part: the next tokens of each row.
            ended: the rows that have no tokens after these.

        Returns:
            The logits after the last tokens of each of the rows in `ended`, (last, V).
        """
        assert isinstance(self.model, GPT)
        assert self.cache is not None
        if self.backend and max(self.cache.lengths) and all(len(row) == 1 for row in part):
            return self._compiled()(self._padded(part)).clone()
        if self.cpu_decoder is None or sum(map(len, part)) > self.cpu_decoder.most:
            x = self.model.features(self._padded(part), self.cache)  # (B, T, C)
            return self.model.head(torch.stack([x[i, len(part[i]) - last : len(part[i])] for i in ended]))
        tokens = [token for row in part for token in row]
        placed = [*zip(self.places, part, strict=True)]
        sequence = [place for place, row in placed for _ in row]
        position = [self.cache.lengths[place] + j for place, row in placed for j in range(len(row))]
        x = self.model.embed(torch.tensor(tokens), torch.tensor(position))  # (N, C)
        ends = list(itertools.accumulate(map(len, part)))
        wanted = [token for i in ended for token in range(ends[i] - last, ends[i])]
        logits = self.cpu_decoder(x, sequence, position, wanted)
        return self.model.cap_logits(logits).view(len(ended), last, logits.shape[1])

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """Return the compiled model: tokens (B, 1) to logits (B, 1, V), with static shapes and addresses."""
        if self.compiled is None:
            model, cache = self.model, self.cache
            assert self.backend is not None
            assert cache is not None
            cache.fix_shapes()
            mode = "reduce-overhead" if self.backend == "inductor" and self.device.type == "cuda" else None
            self.compiled = torch.compile(lambda idx: model(idx, cache), backend=self.backend, mode=mode, dynamic=False)
        return self.compiled

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the rows as one tensor on the model's device, padded on the right with 0, (B, T)."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
