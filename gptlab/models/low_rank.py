"""Layers with trainable low-rank additions: what LoRA puts in the place of a linear layer or an embedding.

The layers keep their weights under the same names; an addition's matrices are called `lora.<part>.A` and `.B`, and the
rows of new tokens, which are trained whole, `new.rows`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models.dropout import NO_DROPOUT, Drop

WHOLE = "whole"  # the part of a layer that has a single addition


class LowRank(nn.Module):
    """The product scale * B A of A (rank, in) and B (out, rank), which begins as zeros."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float, like: Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(like.new_empty(rank, n_in))
        self.B = nn.Parameter(like.new_empty(n_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return the addition for inputs x (..., in): (..., out)."""
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def product(self) -> Tensor:
        """Return scale * B A, (out, in), in fp32 or better."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        return self.scale * (self.B.to(dtype) @ self.A.to(dtype))


class NewRows(nn.Module):
    """The last rows of a frozen table, (n, C), those of tokens that are new to a model: trained in their place.

    Of tied layers both have the same `NewRows`.
    """

    def __init__(self, weight: Tensor, known: int) -> None:
        super().__init__()
        self.known = known
        """The number of rows before these."""
        self.rows = nn.Parameter(weight[known:].detach().clone())

    def change(self, weight: Tensor) -> Tensor:
        """Return what they differ by from the rows in the table, (n, C): zeros as long as nothing was learned."""
        return self.rows - weight[self.known :]

    @torch.no_grad()
    def put_in(self, weight: Tensor) -> Tensor:
        """Return a table with these rows in the place of its last ones."""
        return torch.cat((weight[: self.known], self.rows.to(weight.dtype)))


class AdaptedLinear(nn.Linear):
    """A linear layer, a low-rank addition to some of its rows, and perhaps rows of new tokens.

    Args:
        layer: the layer, whose weights are shared.
        rows: the first row of each part with an addition, and the row after its last.
        rank, scale: see `LowRank`.
    """

    def __init__(self, layer: nn.Linear, rows: Mapping[str, tuple[int, int]], rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.active = True
        self.rows = dict(rows)
        self.new: NewRows | None = None
        self.lora = nn.ModuleDict(
            {
                name: LowRank(layer.in_features, stop - start, rank, scale, layer.weight)
                for name, (start, stop) in rows.items()
            }
        )
        for each in self.additions().values():  # as in the reference, https://github.com/microsoft/LoRA
            nn.init.kaiming_uniform_(each.A, a=math.sqrt(5))
            nn.init.zeros_(each.B)

    def additions(self) -> dict[str, LowRank]:
        """Return the addition to each part."""
        return {name: each for name, each in self.lora.items() if isinstance(each, LowRank)}

    def forward(self, x: Tensor, dropout: Drop = NO_DROPOUT) -> Tensor:
        """Return the output (B, ..., out) for x (B, ..., in); only what the additions read goes through `dropout`."""
        y = F.linear(x, self.weight, self.bias)
        if self.active:
            x = dropout(x)
            for name, addition in self.additions().items():
                start, stop = self.rows[name]
                y = y + F.pad(addition(x), (start, self.out_features - stop))
            if self.new is not None:
                known, change = self.new.known, self.new.change(self.weight)
                y = torch.cat((y[..., :known], y[..., known:] + F.linear(x, change)), dim=-1)
        return y

    def delta(self) -> Tensor:
        """Return what the additions change the weight by, (out, in), in fp32 or better."""
        total = torch.zeros_like(self.weight, dtype=torch.promote_types(self.weight.dtype, torch.float32))
        for name, addition in self.additions().items():
            start, stop = self.rows[name]
            total[start:stop] += addition.product()
        return total


class AdaptedEmbedding(nn.Embedding):
    """An embedding, a low-rank addition to its table, and perhaps rows of new tokens.

    Of the two matrices A begins as zeros here, as in PEFT.

    Args:
        layer: the embedding, whose table is shared.
        rank, scale: see `LowRank`; a rank of 0: no addition.
    """

    def __init__(self, layer: nn.Embedding, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.weight, self.padding_idx = layer.weight, None
        self.active = True
        self.new: NewRows | None = None
        self.rows = {WHOLE: (0, layer.embedding_dim)} if rank else {}
        self.lora = nn.ModuleDict()
        if rank:
            addition = LowRank(layer.num_embeddings, layer.embedding_dim, rank, scale, layer.weight)
            nn.init.zeros_(addition.A)
            nn.init.normal_(addition.B)
            self.lora[WHOLE] = addition

    def additions(self) -> dict[str, LowRank]:
        """Return the addition, by the name of its part; {} if there is none."""
        return {name: each for name, each in self.lora.items() if isinstance(each, LowRank)}

    def forward(self, idx: Tensor) -> Tensor:
        """Return the embeddings (..., C) of tokens idx (...)."""
        x = F.embedding(idx, self.weight)
        if self.active:
            for each in self.additions().values():
                x = x + F.linear(F.embedding(idx, each.A.T), each.B) * each.scale
            if self.new is not None:
                change = F.embedding((idx - self.new.known).clamp(min=0), self.new.change(self.weight))
                x = x + change * (idx >= self.new.known).to(x.dtype)[..., None]
        return x

    def delta(self) -> Tensor:
        """Return what the addition changes the table by, (V, C), in fp32 or better."""
        total = torch.zeros_like(self.weight, dtype=torch.promote_types(self.weight.dtype, torch.float32))
        return sum((each.product().T for each in self.additions().values()), total)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


Adapted = AdaptedLinear | AdaptedEmbedding
