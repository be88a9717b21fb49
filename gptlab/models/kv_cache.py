"""Keys and values of the tokens that a model has read, so that the next token costs the work of one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gptlab.models.layers import PassContext, arange_on, attention_bias, rotation_at
from gptlab.models.positions import alibi_slopes, attention_span, cache_room

if TYPE_CHECKING:
    from gptlab.models.gpt_config import GPTConfig

EMPTY_POSITION = 1 << 30  # the position of an empty column: later than any query


class Span(NamedTuple):
    """Where the tokens of one forward pass lie in the cache."""

    t: Tensor
    """Their positions: (T,) if all rows have one length, else (B, T)."""
    first_column: int | None
    """The column of the first token, if it is the same in all rows and the other tokens follow it; else None."""
    used_columns: int
    """How many columns attention reads."""


class KVCache:
    """Static buffers, (B, K, S, D) for each block; position p of a row lies in column p modulo S.

    A forward pass writes T tokens of each row after its current length, and `advance` makes them count. So rows may
    differ in length: shorter ones are padded on the right, and the padding's entries are overwritten before any token
    attends to them. `forget` takes tokens back in the same way.

    With learned or sinusoidal positions a text has at most S tokens. Otherwise it may be longer: each position attends
    to the last block_size (or window) positions, as in a forward pass over the whole text.

    Args:
        columns: S; for texts longer than S at least `attention_span`, plus one for each token of a pass but its first.
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
        self.static_lengths: Tensor | None = None
        shape = (batch_size, config.kv_heads, columns, config.head_size)
        self.k, self.v = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)] for _ in "kv")
        # The inputs of the convolutions, in columns of their own.
        ring = columns + (config.conv or 1) - 1
        self.conv_inputs = {
            (block, name): torch.zeros(batch_size, ring, config.n_embd, dtype=dtype, device=device)
            for block in range(config.n_layer if config.conv else 0)
            for name in ("attn", "mlp")
        }
        self.slopes = alibi_slopes(config.n_head, arange_on(self.device)) if config.pos == "alibi" else None

    def fix_shapes(self) -> Tensor:
        """Return the rows' lengths as a tensor, (B,) int64, which passes read from now on.

        Their shapes then depend on T alone, as a compiled pass needs.
        """
        self.static_lengths = torch.tensor(self.lengths, device=self.device)
        for static in (self.static_lengths, *self.k, *self.v, *self.conv_inputs.values()):
            torch._dynamo.mark_static_address(static)
        return self.static_lengths

    def room(self) -> int:
        """Return how many tokens the next pass can have at most."""
        return cache_room(self.config, self.columns, max(self.lengths))

    def advance(self, counts: Sequence[int]) -> None:
        """Make the first `counts` tokens that the last pass wrote in each row count."""
        self._set_lengths([length + count for length, count in zip(self.lengths, counts, strict=True)])

    def forget(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths` tokens of each row."""
        self._set_lengths([min(pair) for pair in zip(self.lengths, lengths, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows alone; not after `fix_shapes`."""
        self._set_lengths([self.lengths[row] for row in rows])
        self.k, self.v = ([each[rows] for each in buffers] for buffers in (self.k, self.v))
        self.conv_inputs = {key: each[rows] for key, each in self.conv_inputs.items()}

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = lengths
        if self.static_lengths is not None:
            self.static_lengths.copy_(torch.tensor(lengths))

    def next_pass(self, T: int) -> tuple[Span, PassContext]:
        """Return where the next T tokens lie, and the context that the blocks need for them.

        Raises:
            ValueError: they do not fit into the cache.
        """
        steps = torch.arange(T, device=self.device)
        if self.static_lengths is not None:
            span = Span(self.static_lengths[:, None] + steps, None, self.columns)
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
        rotation = rotation_at(self.config, span.t)
        if rotation is not None and span.t.dim() == 2:
            rotation = rotation[:, :, None]  # (2, B, 1, T, D)
        return span, PassContext(rotation, self._bias(span))

    def _bias(self, span: Span) -> Tensor | None:
        window, T = attention_span(self.config), span.t.shape[-1]
        causal = (
            span.first_column is not None
            and span.first_column + T == span.used_columns <= window
            and T in (1, span.used_columns)
        )
        if causal and self.slopes is None:
            return None
        t = span.t.view(-1, T)  # (1 or B, T)
        last = t[:, -1:]
        # The latest position that falls into each column.
        keys = last - (last - torch.arange(span.used_columns, device=self.device)) % self.columns  # (1 or B, S)
        return attention_bias(t, keys.masked_fill(keys < 0, EMPTY_POSITION), window, self.slopes)

    def append_kv(self, block: int, span: Span) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return `PassContext.append_kv` for a block."""

        def append(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            buffers = self.k[block], self.v[block]
            for buffer, new in zip(buffers, (k, v), strict=True):
                if span.first_column is not None:
                    buffer[:, :, span.first_column : span.first_column + new.shape[2]] = new
                else:
                    columns = (span.t % self.columns).view(-1, 1, new.shape[2], 1).expand_as(new)
                    buffer.scatter_(2, columns, new.to(buffer.dtype))
            return buffers[0][:, :, : span.used_columns], buffers[1][:, :, : span.used_columns]

        return append

    def previous_inputs(self, block: int, span: Span) -> Callable[[str, Tensor, int], Tensor]:
        """Return `PassContext.previous_inputs` for a block."""

        def extend(name: str, x: Tensor, n: int) -> Tensor:
            inputs = self.conv_inputs[block, name]
            B, T, C = x.shape
            first = span.t.view(-1, T)[:, :1]  # (1 or B, 1)
            t = (first + torch.arange(-n, T, device=self.device)).expand(B, -1)  # (B, n + T)
            columns = (t % inputs.shape[1])[:, :, None].expand(-1, -1, C)
            inputs.scatter_(1, columns[:, n:], x.to(inputs.dtype))
            return inputs.gather(1, columns).masked_fill(t[:, :, None] < 0, 0).type_as(x)

        return extend
