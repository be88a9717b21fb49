"""The context of a model that torch computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptlab.generation.context import Context
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.positions import cache_columns
from gptlab.models.weight_only import place_of


class TorchContext(Context):
    """See `open_context`.

    Args:
        cache: keep keys and values; without it every token is computed again each time, with the same result.
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
        super().__init__(c.block_size, prompts)
        self.model = model
        self.device, dtype = place_of(model)
        self.cache: KVCache | None = None
        self.backend = backend
        self.compiled: Callable[[Tensor], Tensor] | None = None
        if cache and isinstance(model, GPT) and isinstance(c, GPTConfig) and c.has_attention:
            columns = cache_columns(c, max(map(len, self.rows)), room, ahead)
            if self.device.type == "cpu" and dtype == torch.bfloat16:
                dtype = torch.float32  # torch's attention over bf16 is several times as slow there
            self.cache = KVCache(c, len(self.rows), columns, dtype=dtype, device=self.device)

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in rows]
        if self.cache is not None:
            self.cache.keep(rows)

    def take_back(self, count: int) -> None:
        for row in self.rows:
            del row[len(row) - count :]
        if self.cache is not None:
            self.cache.forget([*map(len, self.rows)])

    @torch.no_grad()
    def logits(self, last: int = 1) -> Tensor:
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
        while any(rest := [row[length:] for row, length in zip(self.rows, self.cache.lengths, strict=True)]):
            part = [row[: self.cache.room()] for row in rest]
            if not any(part):
                raise ValueError(f"the context was made for {self.cache.columns} tokens, and more have been appended")
            ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
            found |= zip(ended, self._read(part, ended, last), strict=True)
            self.cache.advance([*map(len, part)])
        return torch.stack([found[i] for i in range(len(self.rows))])

    def _read(self, part: list[list[int]], ended: list[int], last: int) -> Tensor:
        """Compute some tokens of each row into the cache.

        Args:
            part: the next tokens of each row.
            ended: the rows that have no tokens after these.

        Returns:
            The logits after the last tokens of each of the rows in `ended`, (n, last, V).
        """
        assert isinstance(self.model, GPT)
        assert self.cache is not None
        if self.backend and max(self.cache.lengths) and all(len(row) == 1 for row in part):
            return self._compiled()(self._padded(part)).clone()
        x = self.model.features(self._padded(part), self.cache)  # (B, T, C)
        return self.model.head(torch.stack([x[i, len(part[i]) - last : len(part[i])] for i in ended]))

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
