"""Keys and values of the tokens that a model has read, so that the next one costs one token's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gptlab.models.layers import Places, alibi_slopes, attention_bias, rotation, sees

if TYPE_CHECKING:
    from gptlab.models.gpt_config import GPTConfig

NOWHERE = 1 << 30  # the position of an empty column: in everyone's future


class Span(NamedTuple):
    """The tokens of one pass in the cache."""

    t: Tensor
    """Their positions: (T,) where all rows are of one length, else (B, T)."""
    first: int | None
    """The column of the first, if all rows have the same and the others follow it."""
    used: int
    """Columns that attention looks at."""


class KVCache:
    """Static buffers, (B, K, S, D) a block; position p of a row lies in column p modulo S.

    A forward pass writes T tokens of each row behind its own length, and `advance` makes them count. So rows may differ
    in length: shorter ones are filled up on the right, and what is written for the filling is overwritten before any
    token sees it. In the same way tokens are taken back, by `forget`.

    With learned or sinusoidal positions, S are all there are. With others a text goes on: each position sees the
    block_size (or window) before it, as in a forward pass over the whole text.

    Args:
        columns: S; to go on beyond it, at least what a position sees, and a column more for each further token of one
            pass.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        columns: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.columns, self.device = config, columns, torch.device(device)
        self.lengths = [0] * batch_size
        self.now: Tensor | None = None
        shape = (batch_size, config.kv_heads, columns, config.n_embd // config.n_head)
        self.k, self.v = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)] for _ in "kv")
        # What the convolutions have read, in columns of its own.
        ring = columns + (config.conv or 1) - 1
        self.read = {
            (block, name): torch.zeros(batch_size, ring, config.n_embd, dtype=dtype, device=device)
            for block in range(config.n_layer if config.conv else 0)
            for name in ("attn", "mlp")
        }
        self.slopes = alibi_slopes(config.n_head, self.device) if config.pos == "alibi" else None

    def fixed(self) -> Tensor:
        """The rows' lengths as a tensor, (B,) int64, from which passes read them from now on, so that shapes depend
        on T alone: what a compiled pass needs."""
        self.now = torch.tensor(self.lengths, device=self.device)
        for static in (self.now, *self.k, *self.v, *self.read.values()):
            torch._dynamo.mark_static_address(static)
        return self.now

    def room(self) -> int:
        """How many tokens the next pass can have."""
        left = self.columns - max(self.lengths)
        return max(left, self.columns - sees(self.config) + 1) if self.config.slides else left

    def advance(self, counts: list[int]) -> None:
        """Let the first `counts` tokens of each row that the last pass has written count."""
        self._set([length + count for length, count in zip(self.lengths, counts, strict=True)])

    def forget(self, lengths: list[int]) -> None:
        """Keep the first `lengths` tokens of each row."""
        self._set(list(map(min, self.lengths, lengths)))

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        if self.now is not None:
            self.now.copy_(torch.tensor(lengths))

    def places(self, T: int) -> tuple[Span, Places]:
        """Where the next T tokens stand, and what attention must know of it.

        Raises:
            ValueError: they do not fit.
        """
        steps = torch.arange(T, device=self.device)
        if self.now is not None:
            span = Span(self.now[:, None] + steps, None, self.columns)
        else:
            shortest, longest = min(self.lengths), max(self.lengths)
            if self.room() < T:
                raise ValueError(f"{T} tokens after {longest} are more than the cache holds: {self.columns}")
            used = min(longest + T, self.columns)
            if shortest == longest:
                first = longest % self.columns
                span = Span(steps + longest, first if first + T <= self.columns else None, used)
            else:
                span = Span(torch.tensor(self.lengths, device=self.device)[:, None] + steps, None, used)
        turned = rotation(self.config, span.t)
        if turned is not None and span.t.dim() == 2:
            turned = turned[:, :, None]  # (2, B, 1, T, D)
        return span, Places(turned, self._bias(span))

    def _bias(self, span: Span) -> Tensor | None:
        window, T = sees(self.config), span.t.shape[-1]
        causal = span.first is not None and span.first + T == span.used <= window and T in (1, span.used)
        if causal and self.slopes is None:
            return None
        t = span.t.view(-1, T)  # (1 or B, T)
        last = t[:, -1:]
        # Which position was the last to fall into each column.
        keys = last - (last - torch.arange(span.used, device=self.device)) % self.columns  # (1 or B, S)
        return attention_bias(t, keys.masked_fill(keys < 0, NOWHERE), window, self.slopes)

    def keep(self, block: int, span: Span) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What `Places.keep` is for a block."""

        def keep(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            kept = self.k[block], self.v[block]
            for all_, new in zip(kept, (k, v), strict=True):
                if span.first is not None:
                    all_[:, :, span.first : span.first + new.shape[2]] = new
                else:
                    columns = (span.t % self.columns).view(-1, 1, new.shape[2], 1).expand_as(new)
                    all_.scatter_(2, columns, new.to(all_.dtype))
            return kept[0][:, :, : span.used], kept[1][:, :, : span.used]

        return keep

    def behind(self, block: int, span: Span) -> Callable[[str, Tensor, int], Tensor]:
        """What `Places.behind` is for a block."""

        def behind(name: str, x: Tensor, n: int) -> Tensor:
            read = self.read[block, name]
            B, T, C = x.shape
            first = span.t.view(-1, T)[:, :1]  # (1 or B, 1)
            t = (first + torch.arange(-n, T, device=self.device)).expand(B, -1)  # (B, n + T)
            columns = (t % read.shape[1])[:, :, None].expand(-1, -1, C)
            read.scatter_(1, columns[:, n:], x.to(read.dtype))
            return read.gather(1, columns).masked_fill(t[:, :, None] < 0, 0).type_as(x)

        return behind
