"""Rows of tokens, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gptlab.generation.cpu_decoder import MOST, CPUDecoder
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import attention_span


class Context:
    """Rows of tokens, and what a model makes of them: the logits of their next tokens.

    What stands more than block_size before a token is out of its sight. With learned or sinusoidal positions the rest
    is then read anew for every token, as in the lessons; with others the window slides (see `KVCache`).

    Args:
        model: in evaluation mode.
        prompts: the tokens of each row, at least one; the last block_size of them are taken.
        room: how many tokens are going to be appended to a row.
        ahead: how many of them at once, to be taken back perhaps.
        cache: keep keys and values; without, everything is read anew for every token, to the same end.
        backend: let torch compile the reading of single tokens, by "inductor" (on a GPU as CUDA graphs).
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        ahead: int = 1,
        cache: bool = True,
        backend: str | None = None,
    ) -> None:
        c = model.config
        self.model = model
        self.rows = [list(prompt[-c.block_size :]) for prompt in prompts]
        self.device = next(model.parameters()).device
        self.cache: KVCache | None = None
        self.few: CPUDecoder | None = None
        self.backend = backend
        self.passes = 0  # how many times tokens were read
        self.compiled: Callable[[Tensor], Tensor] | None = None
        if cache and isinstance(model, GPT) and isinstance(c, GPTConfig) and c.has_attention:
            longest = max(map(len, self.rows))
            whole = longest + room
            columns = max(longest, min(whole, attention_span(c))) + ahead if c.slides else min(whole, c.block_size)
            dtype = model.wte.weight.dtype
            if self.device.type == "cpu" and dtype == torch.bfloat16:
                dtype = torch.float32  # torch's attention over bf16 is several times as slow there
            self.cache = KVCache(c, len(self.rows), columns, dtype=dtype, device=self.device)
            if backend is None and CPUDecoder.serves(model, self.cache):
                self.few = CPUDecoder(model, self.cache)

    def append(self, tokens: Tensor | Sequence[int]) -> None:
        """Add a token to each row, (B,)."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))

    def take_back(self, count: int) -> None:
        """Remove the last tokens of each row."""
        for row in self.rows:
            del row[len(row) - count :]
        if self.cache is not None:
            self.cache.forget([len(row) for row in self.rows])

    @torch.no_grad()
    def logits(self, last: int = 1) -> Tensor:
        """Logits after each of the `last` tokens of every row, (B, last, V); some token of each row has not been read.

        Where there is a cache, what is unread has at least `last` tokens.

        Raises:
            ValueError: more was appended than there is room for.
        """
        self.passes += 1
        c = self.model.config
        slides = isinstance(c, GPTConfig) and c.slides
        if self.cache is not None and not slides and max(map(len, self.rows)) > self.cache.columns:
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
        while any(rest := [row[n:] for row, n in zip(self.rows, self.cache.lengths, strict=True)]):
            if (room := self.cache.room()) < 1:
                raise ValueError(f"the context was made for {self.cache.columns} tokens, and more have been appended")
            part = [row[:room] for row in rest]
            ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
            found |= zip(ended, self._read(part, ended, last), strict=True)
            self.cache.advance([len(row) for row in part])
        return torch.stack([found[i] for i in range(len(self.rows))])

    def _read(self, part: list[list[int]], ended: list[int], last: int) -> Iterable[Tensor]:
        """Read tokens of each row into the cache; logits (last, V) of the rows that end with them."""
        assert isinstance(self.model, GPT)
        assert self.cache is not None
        if self.backend and max(self.cache.lengths) and all(len(row) == 1 for row in part):
            return self._compiled()(self._padded(part)).clone()
        if self.few is None or sum(map(len, part)) > MOST:
            x = self.model.features(self._padded(part), self.cache)  # (B, T, C)
            return self.model.head(torch.stack([x[i, len(part[i]) - last : len(part[i])] for i in ended]))
        tokens = [token for row in part for token in row]
        sequence = [i for i, row in enumerate(part) for _ in row]
        position = [self.cache.lengths[i] + j for i, row in enumerate(part) for j in range(len(row))]
        x = self.model.embed(torch.tensor(tokens), torch.tensor(position))  # (N, C)
        logits = self.model.cap_logits(self.few(x, sequence, position))  # (N, V)
        each = logits.split([len(row) for row in part])
        return [each[i][-last:] for i in ended]

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """Tokens (B, 1) to logits (B, 1, V), with static shapes and addresses."""
        if self.compiled is None:
            model, cache = self.model, self.cache
            assert self.backend is not None
            assert cache is not None
            cache.fix_shapes()
            mode = "reduce-overhead" if self.backend == "inductor" and self.device.type == "cuda" else None
            self.compiled = torch.compile(lambda idx: model(idx, cache), backend=self.backend, mode=mode, dynamic=False)
        return self.compiled

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B, T) on the model's device, filled up on the right."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
